"""Token-safe jump-forward: which tokens are certain, when the text that must come next is.

A constraint forces text, not tokens. Forcing the text's own tokens puts token borders where the model never saw any,
and it writes worse from there on. So a token is forced only where every text that may still come is tokenised with it:

1. The text so far and the forced text are tokenised as one, as the tokenizer would. Where that disagrees with tokens
   drawn before, those are replaced (`Jump.keep`); the prompt's are never.
2. At the right end a longer text may be tokenised otherwise. Let x be the known text and w any text that begins with
   it. Some token of w's tokenisation reaches over (or up to) the end of x; let it begin at i. Then what is before it is
   the tokenisation of x[:i]: merges (BPE), best paths (unigram) and longest matches (WordPiece) before a token border
   do not depend on what is behind it. And the token at i begins with x[i:], so there are few such i: those for which
   the vocabulary has a token that begins with x[i:] and goes on as the constraint allows. What the tokenisations of all
   these x[:i], and of x itself, begin with is certain.
3. Before merging, tokenizers cut text into words, and there a cut does depend on the text behind it: on whether a
   letter, a digit, a blank or something else follows (`\\s+(?!\\S)`, contractions, a blank that joins the next word).
   So x is also tokenised with continuations of every such kind that the constraint allows, which must agree as well.

Step 3 rests on cutting rules that look at kinds of characters a few characters ahead, as those of all language models
do; step 2 needs nothing else. Whatever the encoder does, the tokens returned spell exactly the text they stand for.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from sglang.grammar.vocab import Vocabulary

Encode = Callable[[str], list[int]]  # without special tokens at the ends
Follows = Callable[[bytes], bool]  # whether the constraint lets this come behind the forced text

WINDOW = 24  # tokens drawn before that may be replaced: bounds what a jump costs; a seam is seldom more than a few
LEFT = 8  # tokens before the window that are shown to the tokenizer with it
TAIL = 12  # tokens at the end that are tokenised again with continuations
ENDING = 5  # tokens at the end on which it depends how many of them are certain, beside what may follow
REMEMBERED = 1 << 16  # endings
LOOKED_AT = 48  # tokens with one beginning that are tried against the constraint; with more, one is taken to fit

# One continuation or more of every kind that cutting rules tell apart.
_CONTINUATIONS = {
    "lower": ("a", "s", "t", "re", "ll", "e\u0301"),
    "upper": ("A", "Ab"),
    "digit": ("1", "12", "123"),
    "blank": (" ", "  ", " a", " 1", " .", " \n"),
    "line": ("\n", "\n\n", "\n a", "\r\n"),
    "tab": ("\t", "\ta"),
    "quote": ("'", "'s", "'re"),
    "mark": (".", "..", "_", "-1", ".\n", "(a", "/"),
    "other": ("é", "中", "。", "\u0301", "😀", "\u00a0"),
}
_RARE = "\u01bb"  # a letter that merges with nothing


def _kind(byte: int) -> str:
    c = chr(byte)
    if byte > 127:
        return "other"
    if c in "\n\r":
        return "line"
    if c in " \t'":
        return {" ": "blank", "\t": "tab", "'": "quote"}[c]
    return "digit" if c.isdigit() else "mark" if not c.isalpha() else "lower" if c.islower() else "upper"


_ANY_BYTE = [bytes([b]) for b in (*range(32, 128), *range(32), *range(128, 256))]
_KINDS = [(bytes([b]), _kind(b)) for b in (*range(9, 127), *range(0xC2, 0xF5))]


@dataclass(frozen=True)
class Jump:
    """Of the tokens generated so far keep the first `keep`, then append `tokens`; together they say `text` more."""

    keep: int
    tokens: list[int]
    text: bytes


class Jumper:
    """For one tokenizer. Thread-safe, without state of requests.

    encode: text -> ids, adding nothing at the ends (a blank that sentencepiece puts in front is understood).
    """

    def __init__(self, vocabulary: Vocabulary, encode: Encode):
        self._bytes = vocabulary.bytes
        self._vocabulary = vocabulary
        self._encode = encode
        self._known = frozenset(vocabulary.bytes)
        # Characters that the vocabulary cannot spell will not come.
        self._continuations = {
            kind: [c.encode() for c in listed if all(map(self._spelled, encode(c)))]
            for kind, listed in _CONTINUATIONS.items()
        }
        self.whole_words = self._takes_whole_words()
        self._loose: dict[tuple[Hashable, tuple[int, ...]], int] = {}  # place and ending -> tokens that are not certain

    def jump(
        self,
        prompt: Sequence[int],
        generated: Sequence[int],
        forced: bytes,
        follows: Follows | None = None,
        place: Hashable | None = None,
    ) -> Jump | None:
        """None where no token more is certain.

        prompt: its last few tokens are enough. follows: speaks of what may come behind all of `forced`; None: anything.
        place: equal for equal `follows`, where that is known: then what was found out once is remembered.
        """
        if not forced:
            return None
        start = max(0, len(generated) - WINDOW)
        before = [*prompt[-LEFT:], *generated[max(0, start - LEFT) : start]][-LEFT:]
        window = list(generated[start:])
        spelled = [self._spelled(t) for t in window]
        drawn = b"".join(spelled)
        known = _whole_characters(drawn + forced)
        if known is None or len(known) <= len(drawn) or not all(spelled):
            return None
        if len(known) < len(drawn) + len(forced):
            place = None  # part of a character is left over
            rest = (drawn + forced)[len(known) :]
            outer = follows
            follows = None if outer is None else lambda text: rest.startswith(text) or (
                text.startswith(rest) and outer(text[len(rest) :])
            )  # fmt: skip
        context = self._context(before)
        ids = self._canonical(context, known) if context is not None else None
        if ids is None:
            context = ""
            ids = self._canonical(context, known)
        if ids is None:
            context = "\n"  # sentencepiece begins every text with a blank of its own
            ids = self._canonical(context, known)
        if ids is None or context is None:
            return None
        ids = ids[: self._certain_before(context, known, ids, follows, place)]
        length = sum(len(self._bytes[i]) for i in ids)
        if length <= len(drawn):
            return None
        keep = _agree(window, ids)
        return Jump(start + keep, ids[keep:], known[len(drawn) : length])

    def _spelled(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def _context(self, before: Sequence[int]) -> str | None:
        """The text of the tokens just before, back to the last special one."""
        text = b""
        for token in reversed(before):
            spelled = self._spelled(token)
            if not spelled:
                break
            text = spelled + text
        while text and text[0] >> 6 == 2:
            text = text[1:]
        try:
            return text.decode()
        except UnicodeDecodeError:
            return None

    def _canonical(self, context: str, text: bytes) -> list[int] | None:
        """The tokens of `text` behind `context`; None where no token border is between them."""
        ids = self._encode(context + text.decode())
        end, at = len(text), len(ids)
        while end > 0 and at > 0:
            at -= 1
            spelled = self._spelled(ids[at])
            if not spelled or not text.endswith(spelled, 0, end):
                return None  # or a special token's name stands in the text
            end -= len(spelled)
        return ids[at:] if end == 0 else None

    def _certain_before(
        self, context: str, text: bytes, ids: list[int], follows: Follows | None, place: Hashable | None
    ) -> int:
        """As `_certain`, remembered by the tokens at the end."""
        key = place, tuple(ids[-ENDING:])
        if place is not None and len(ids) >= ENDING and (loose := self._loose.get(key)) is not None:
            return len(ids) - loose
        certain = self._certain(context, text, ids, follows)
        if place is not None and len(ids) - certain < ENDING <= len(ids):
            if len(self._loose) >= REMEMBERED:
                self._loose.clear()
            self._loose[key] = len(ids) - certain
        return certain

    def _certain(self, context: str, text: bytes, ids: list[int], follows: Follows | None) -> int:
        """How many of `ids`, the tokens of `text`, every longer text begins with."""
        certain = len(ids)
        if follows is not None and not any(follows(byte) for byte in _ANY_BYTE):
            return certain  # nothing may follow
        context, text, ids, skipped = self._tail(context, text, ids)
        certain -= skipped
        for i in self._borders(text, follows):
            for others in self._ways(context, text[:i]):
                certain = min(certain, _agree(ids, others))
        kinds = {kind for byte, kind in _KINDS if follows is None or follows(byte)}
        for kind in sorted(kinds):
            for continuation in self._continuations[kind]:
                if certain:
                    others = self._canonical(context, text + continuation)
                    certain = min(certain, _agree(ids, others or []))
        return skipped + certain if certain else 0

    def _tail(self, context: str, text: bytes, ids: list[int]) -> tuple[str, bytes, list[int], int]:
        """The last tokens by themselves, where they come out the same: what is far from the end is certain anyway."""
        for cut in (len(ids) - TAIL, len(ids) - 2 * TAIL):
            if cut < LEFT:
                break
            offset = sum(len(self._bytes[i]) for i in ids[:cut])
            before = self._context(ids[cut - LEFT : cut])
            if before and text[offset] >> 6 != 2 and self._canonical(before, text[offset:]) == ids[cut:]:
                return before, text[offset:], ids[cut:], cut
        return context, text, ids, 0

    def _borders(self, text: bytes, follows: Follows | None) -> list[int]:
        """Where a token may begin that reaches over the end of `text`; only borders of characters."""
        found: set[int] = set()
        for i in range(max(0, len(text) - self._vocabulary.longest), len(text)):
            end = text[i:]
            tokens = self._vocabulary.starting_with(end)
            longer = [t for t in tokens[:LOOKED_AT] if len(t) > len(end)]
            if not longer:
                continue
            if follows is None or len(tokens) > LOOKED_AT or any(follows(t[len(end) :]) for t in longer):
                found |= self._reached(text, i, frozenset())
        return sorted(found)

    def _reached(self, text: bytes, i: int, seen: frozenset[int]) -> set[int]:
        """The border `i`, or where it is inside a character, those from which tokens lead to it."""
        if i == 0 or text[i] >> 6 != 2:
            return {i}
        starts = [
            j for j in range(max(0, i - self._vocabulary.longest), i) if j not in seen and text[j:i] in self._known
        ]
        return {k for j in starts for k in self._reached(text, j, seen | {i})}

    def _ways(self, context: str, text: bytes) -> list[list[int]]:
        """How `text` may be tokenised where a token of a longer text begins at its end."""
        ways = [self._canonical(context, text) or []]
        if self.whole_words and text:
            # Inside a longer word it may be put together otherwise than as a word of its own.
            inner = self._canonical(context, text + _RARE.encode())
            ways.append(inner or [])
        return ways

    def _takes_whole_words(self) -> bool:
        """Whether words that are tokens are taken whole, though no merges lead to them (Llama 3's `ignore_merges`)."""
        words = [(i, t) for i, t in enumerate(self._bytes) if 2 <= len(t) <= 12 and t.isalpha() and t.islower()]
        step = max(1, len(words) // 1000)
        return any(
            self._encode(text.decode()) == [i] and self._encode(text.decode() + _RARE)[:1] != [i]
            for i, text in words[::step]
        )


def _agree(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _whole_characters(data: bytes) -> bytes | None:
    """Without a last character that is not complete; None for what is not UTF-8."""
    for cut in range(4):
        try:
            data[: len(data) - cut].decode()
            return data[: len(data) - cut]
        except UnicodeDecodeError as error:
            if error.start < len(data) - 4:
                return None
    return None
