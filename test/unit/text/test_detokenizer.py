"""Text as it becomes printable: the same for every way of cutting the ids, and as one decoding of them all."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_kinds import LOCAL, MAKERS, SIZES, cut, ids_of, raw_of, tokenizer_of

from sglang.grammar.search import Search, patterns_of
from sglang.text.detokenizer import Detokenizer, Text

PATTERNS = ["a.*e", r"\d+", r"\W\W+", "[^a-z ]", "(?i)the|IS", "[日本é]+x?", "a{2,3}|o.{3}", r"\n+.", "\ufffd", "e.t"]
KINDS = st.sampled_from(sorted(MAKERS))


def run(detokenizer: Detokenizer, pushes: list[list[int]]) -> tuple[str, str | None, int, list[str]]:
    """(text, stop, tokens read, deltas), ending where a stop string is found."""
    deltas: list[str] = []
    used = 0
    for i, part in enumerate(pushes):
        got = detokenizer.push(part, i == len(pushes) - 1)
        deltas.append(got.delta)
        used += got.tokens_used
        if got.stop is not None:
            return "".join(deltas), got.stop, used, deltas
    return "".join(deltas), None, used, deltas


def naive(text: str, stop: list[str], keep: bool, patterns: Sequence[str] = ()) -> tuple[str, str | None]:
    """The text up to the first place where a stop string occurs or a pattern matches, the shortest that does there."""
    found = [re.compile(pattern, re.ASCII) for pattern in [*map(re.escape, stop), *patterns]]
    for at in range(len(text)):
        for end in range(at + 1, len(text) + 1):
            if any(pattern.fullmatch(text, at, end) for pattern in found):
                return text[: end if keep else at], text[at:end]
    return text, None


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(LOCAL), SIZES, st.booleans())
def test_deltas_joined_are_what_decoding_all_ids_gives(
    data: st.DataObject, kind: str, sizes: list[int], skip: bool
) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(kind))
    text, _, used, _ = run(Detokenizer(tokenizer, skip_special_tokens=skip), cut(ids, sizes))
    assert text == tokenizer.decode(ids, skip, continues=True)
    assert used == len(ids)


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES)
def test_a_decoder_that_looks_at_neighbours_gives_the_same_deltas_joined(data: st.DataObject, sizes: list[int]) -> None:
    raw = raw_of("end_of_word")
    ids = data.draw(st.lists(st.integers(0, raw.get_vocab_size() - 1), max_size=60))
    text, _, _, _ = run(Detokenizer(tokenizer_of("end_of_word")), cut(ids, sizes))
    assert text == raw.decode(ids)


@settings(max_examples=150, deadline=None)
@given(st.data(), KINDS, SIZES)
def test_no_delta_ends_in_half_a_character(data: st.DataObject, kind: str, sizes: list[int]) -> None:
    text = data.draw(st.text(alphabet="日本é👋🏽🌍 ab", max_size=12))
    tokenizer = tokenizer_of(kind)
    ids = [id for id in tokenizer.encode(text) if tokenizer.token_text(id) != "<unk>"]
    _, _, _, deltas = run(Detokenizer(tokenizer), cut(ids, sizes))
    assert not any("\ufffd" in delta for delta in deltas)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(LOCAL), SIZES, st.booleans())
def test_stop_strings_are_found_as_if_the_whole_text_had_been_searched(
    data: st.DataObject, kind: str, sizes: list[int], keep: bool
) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(kind))
    whole = tokenizer.decode(ids, continues=True)
    pieces = [whole[i : i + n] for i in range(len(whole)) for n in (1, 2, 5, 9)] or ["x"]
    stop = data.draw(st.lists(st.one_of(st.sampled_from(pieces), st.text("ab n\n日", min_size=1)), max_size=4))
    make = lambda: Detokenizer(tokenizer, stop=stop, no_stop_trim=keep)  # noqa: E731
    text, found, used, _ = run(make(), cut(ids, sizes))
    assert (text, found) == naive(whole, stop, keep)
    one_by_one = run(make(), cut(ids, [1] * len(ids)))
    assert (text, found, used) == one_by_one[:3], "how ids are cut changes nothing, the count neither"


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=14), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4), SIZES)
def test_overlapping_stop_strings_are_decided_by_where_they_begin(text: str, stop: list[str], sizes: list[int]) -> None:
    tokenizer = tokenizer_of("byte_level")
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    got = run(Detokenizer(tokenizer, stop=stop), cut([a if c == "a" else b for c in text], sizes))
    assert got[:2] == naive(text, stop, False)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(LOCAL), SIZES, st.booleans(), st.lists(st.sampled_from(PATTERNS), max_size=3))
def test_patterns_are_found_as_if_the_whole_text_had_been_searched(
    data: st.DataObject, kind: str, sizes: list[int], keep: bool, patterns: list[str]
) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(kind))
    whole = tokenizer.decode(ids, continues=True)
    pieces = [whole[i : i + n] for i in range(len(whole)) for n in (1, 2, 5)] or ["x"]
    patterns += [re.escape(piece) for piece in data.draw(st.lists(st.sampled_from(pieces), max_size=2))]
    stop = data.draw(st.lists(st.sampled_from(pieces), max_size=2))
    check_patterns(kind, ids, whole, sizes, stop, patterns or ["a"], keep)


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab", max_size=14),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=2),
    st.lists(
        st.sampled_from(["a.b", "ab*a", "b+aa", "(ab)+b", "a{3}", "(a|bb)*abab", "b.{3}a"]), min_size=1, max_size=3
    ),
    SIZES,
    st.booleans(),
)
def test_overlapping_stops_of_both_kinds_are_decided_by_where_they_begin(
    text: str, stop: list[str], patterns: list[str], sizes: list[int], keep: bool
) -> None:
    tokenizer = tokenizer_of("byte_level")
    ids = [tokenizer.encode(c)[0] for c in text]
    check_patterns("byte_level", ids, text, sizes, stop, patterns, keep)


def check_patterns(
    kind: str, ids: list[int], whole: str, sizes: list[int], stop: list[str], patterns: list[str], keep: bool
) -> None:
    def make() -> Detokenizer:
        search = Search(patterns_of(tuple(patterns)))
        return Detokenizer(tokenizer_of(kind), stop=stop, search=search, no_stop_trim=keep)

    text, found, used, _ = run(make(), cut(ids, sizes))
    assert (text, found) == naive(whole, stop, keep, patterns)
    one_by_one = run(make(), cut(ids, [1] * len(ids)))
    assert (text, found, used) == one_by_one[:3], "how ids are cut changes nothing, the count neither"
    said = ""
    for delta in one_by_one[3]:
        said += delta
        assert text.startswith(said), "what was said stays"


def test_text_that_may_become_a_match_is_held_back_and_no_more() -> None:
    tokenizer = tokenizer_of("byte_level")
    letters = {c: tokenizer.encode(c)[0] for c in "x12."}
    detokenizer = Detokenizer(tokenizer, stop=("2x",), search=Search(patterns_of((r"\d+\.",))))
    seen = [detokenizer.push([letters[c]], False).delta for c in "x11x12"]
    assert seen == ["x", "", "", "11x", "", ""], "11 is let go when x shows that it begins no match"
    assert detokenizer.push([letters["."], letters["x"]], False) == Text("", "12.", 1)


def test_text_that_is_held_for_long_is_searched_once() -> None:
    tokenizer = tokenizer_of("byte_level")
    a, b, x = (tokenizer.encode(c)[0] for c in "abx")
    detokenizer = Detokenizer(tokenizer, stop=("bb",), search=Search(patterns_of(("a.*x",))))
    assert detokenizer.push([a, b, b, *[a] * 5000], False) == Text("", None, 5003)
    assert detokenizer.push([x], True) == Text("", "abb" + "a" * 5000 + "x", 1)
    detokenizer = Detokenizer(tokenizer, stop=("bb",), search=Search(patterns_of(("a.*x",))))
    detokenizer.push([a, b, b, *[a] * 50], False)
    assert detokenizer.push([], True) == Text("a", "bb", 0), "found, while what began before it might still come"


def test_a_stop_string_found_keeps_its_place_while_what_is_before_it_is_let_go() -> None:
    tokenizer = tokenizer_of("byte_level")
    letters = {c: tokenizer.encode(c)[0] for c in "abcx"}
    detokenizer = Detokenizer(tokenizer, stop=("xx",), search=Search(patterns_of(("a.{5}z", "b.{8}z"))))
    assert detokenizer.push([letters[c] for c in "abcxxcc"], False) == Text("a", None, 7)
    assert detokenizer.push([letters[c] for c in "ccccc"], False) == Text("bc", "xx", 4)


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    tokenizer = tokenizer_of("byte_level")
    letters = {c: tokenizer.encode(c)[0] for c in "xEND."}
    detokenizer = Detokenizer(tokenizer, stop=("END.",))
    seen = [detokenizer.push([letters[c]], False).delta for c in "xENEND"]
    assert seen == ["x", "", "", "EN", "", ""], "EN is let go when another E shows that it begins no stop string"
    assert detokenizer.push([letters["."], letters["x"]], False) == Text("", "END.", 1)


def test_a_stop_string_found_waits_for_one_that_began_before_it() -> None:
    tokenizer = tokenizer_of("byte_level")
    letters = {c: tokenizer.encode(c)[0] for c in "abcdx"}
    stop = ("abcd", "bc")
    detokenizer = Detokenizer(tokenizer, stop=stop)
    assert detokenizer.push([letters[c] for c in "xabc"], False) == Text("x", None, 4)
    assert detokenizer.push([letters["d"]], False) == Text("", "abcd", 1)
    detokenizer = Detokenizer(tokenizer, stop=stop)
    detokenizer.push([letters[c] for c in "xabc"], False)
    assert detokenizer.push([letters["x"], letters["a"]], False) == Text("a", "bc", 1)


def test_held_text_and_half_characters_come_out_at_the_end() -> None:
    tokenizer = tokenizer_of("byte_level")
    half = [tokenizer.encode("日")[0]]
    assert len(tokenizer.token_bytes(half[0])) < 3
    detokenizer = Detokenizer(tokenizer, stop=("ab",))
    assert detokenizer.push([*tokenizer.encode("xa"), *half], False) == Text("x", None, len(tokenizer.encode("xa")) + 1)
    assert detokenizer.push([], True) == Text("a\ufffd", None, 0)


def test_a_stop_string_inside_a_special_token_is_seen_only_where_special_tokens_are_shown() -> None:
    tokenizer = tokenizer_of("llama")
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False)[-1]
    assert end in tokenizer.special_ids
    assert Detokenizer(tokenizer, stop=("im_end",)).push([end], True) == Text("", None, 1)
    shown = Detokenizer(tokenizer, stop=("im_end",), skip_special_tokens=False)
    assert shown.push([end], True) == Text("<|", "im_end", 1)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(LOCAL), st.text(alphabet="ab Paris\n", min_size=1, max_size=20))
def test_an_answer_keeps_the_blank_that_parts_it_from_the_prompt(data: st.DataObject, kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    at = data.draw(st.integers(0, len(ids)))
    prompt = tokenizer.decode(ids[:at])
    if prompt:  # else there is nothing that the answer continues
        assert prompt + Detokenizer(tokenizer).push(ids[at:], True).delta == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_long_answer_costs_as_much_per_token_at_its_end_as_at_its_beginning(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(" the capital of Japan is Tokyo") * 500
    detokenizer = Detokenizer(tokenizer, stop=("nowhere",))
    out = "".join(detokenizer.push([id], False).delta for id in ids) + detokenizer.push([], True).delta
    assert out == tokenizer.decode(ids, continues=True)
    reader = detokenizer._reader  # what it keeps is what it looks at again
    kept = getattr(reader, "_ids", None) or getattr(reader, "_rest", b"")
    assert len(kept) + len(detokenizer._held) < 64
