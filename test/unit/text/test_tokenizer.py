"""Loading, encoding, decoding and chats, against the libraries that define them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from text_kinds import BYTES, LOCAL, MAKERS, SPECIAL, ids_of, raw_of, save, tokenizer_of
from tokenizers import normalizers, processors

from sglang.base.errors import ConfigError, FieldError
from sglang.base.messages import Side
from sglang.text.engines import FastEngine, PythonEngine
from sglang.text.tokenizer import Tokenizer, load

JINJA = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def valid_runs(kind: str, ids: list[int], hidden: frozenset[int]) -> bool:
    """Whether every run of byte tokens is whole characters: else the library drops the valid ones among them."""
    run = b""
    for id in [*(i for i in ids if i not in hidden), -1]:
        token = raw_of(kind).id_to_token(id) if id >= 0 else "end"
        if token in BYTES:
            run += bytes([BYTES.index(token)])
        elif token is not None:
            try:
                run.decode()
            except UnicodeDecodeError:
                return False
            run = b""
    return True


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(sorted(MAKERS)), st.booleans())
def test_decoding_is_what_the_tokenizers_library_says(data: st.DataObject, kind: str, skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(kind))
    if valid_runs(kind, ids, tokenizer.special_ids if skip else frozenset()):
        assert tokenizer.decode(ids, skip) == raw_of(kind).decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_broken_byte_among_byte_tokens_costs_no_whole_character(kind: str) -> None:
    raw, tokenizer = raw_of(kind), tokenizer_of(kind)
    ids = [raw.token_to_id(f"<0x{b:02X}>") for b in "日".encode() + b"\xff\xe6\x97"]
    assert tokenizer.decode(ids) == "日\ufffd\ufffd\ufffd"
    assert raw.decode(ids) == "\ufffd" * 6, "the library gives up the whole run: if it no longer does, use it"


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["byte_level", "llama", "gemma"]))
def test_the_bytes_of_tokens_joined_are_the_text(data: st.DataObject, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = data.draw(st.text(max_size=20))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assume(tokenizer.special_ids.isdisjoint(ids))  # a text that names one, which has no bytes
    joined = b"".join(tokenizer.token_bytes(id) for id in ids).decode()
    assert joined == (f" {text}" if kind == "llama" and text else text)


def test_every_byte_is_spelled_by_some_token() -> None:
    for kind in ("byte_level", "llama"):
        tokenizer = tokenizer_of(kind)
        assert {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)} >= {bytes([b]) for b in range(256)}


def test_special_tokens_have_a_name_and_no_bytes() -> None:
    for kind in LOCAL:
        tokenizer = tokenizer_of(kind)
        for token in SPECIAL:
            id = raw_of(kind).token_to_id(token)
            assert id in tokenizer.special_ids
            assert tokenizer.token_text(id).strip() == token
            assert tokenizer.token_bytes(id) == b""
    assert tokenizer_of("byte_level").token_text(10**6) == ""


def test_part_of_a_character_is_shown_as_such() -> None:
    tokenizer = tokenizer_of("llama")
    id = raw_of("llama").token_to_id("<0xE6>")
    assert (tokenizer.token_text(id), tokenizer.token_bytes(id)) == ("\ufffd", b"\xe6")


def test_ids_come_from_the_tokenizer_and_the_models_configs(tmp_path: Path) -> None:
    folder = save(tmp_path, "byte_level")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "bos_token_id": 0}')
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    tokenizer = load(str(folder))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1, 2, 7))


def test_special_tokens_may_be_objects_or_stand_in_their_own_file(tmp_path: Path) -> None:
    folder = save(tmp_path, "byte_level", bos_token=None, eos_token={"content": "<|im_end|>"})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    tokenizer = load(str(folder))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (2,))


def writes_bos(folder: Path) -> None:
    raw = raw_of("byte_level").from_str(raw_of("byte_level").to_str())
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    raw.save(str(folder / "tokenizer.json"))


CONFIGS = [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]


@pytest.mark.parametrize("file_adds", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_put_around_a_text_is_what_transformers_puts(
    tmp_path: Path, file_adds: bool, config: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    folder = save(tmp_path, "byte_level", **config)
    if file_adds:
        writes_bos(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert load(str(folder)).encode("one two") == AutoTokenizer.from_pretrained(str(folder)).encode("one two")


@pytest.mark.parametrize("file_adds", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_llama_tokenizer_class_obeys_its_config(tmp_path: Path, file_adds: bool, config: dict[str, Any]) -> None:
    folder = save(tmp_path, "byte_level", tokenizer_class="LlamaTokenizerFast", **config)
    if file_adds:
        writes_bos(folder)
    ids = load(str(folder)).encode("one two")
    assert (ids[0] == 0) == config.get("add_bos_token", file_adds)
    assert (ids[-1] == 1) == config.get("add_eos_token", False)
    assert tokenizer_of("byte_level").decode(ids) == "one two"


@pytest.mark.parametrize("own_code", [True, False])
def test_a_class_with_code_of_its_own_ends_texts_where_its_config_says_so(tmp_path: Path, own_code: bool) -> None:
    more = {"auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}} if own_code else {}
    folder = save(tmp_path, "byte_level", tokenizer_class="Qwen2Tokenizer", add_eos_token=True, **more)
    assert (load(str(folder)).encode("one two")[-1] == 1) == own_code


def test_a_chat_begins_with_one_bos_whoever_writes_it(tmp_path: Path) -> None:
    folder = save(tmp_path, "byte_level", chat_template=JINJA)
    writes_bos(folder)
    tokenizer = load(str(folder))
    rendered = tokenizer.render_chat(HELLO)
    assert rendered == "<s><|user|>hello\n<|assistant|>"
    assert tokenizer.encode_chat(rendered).count(0) == 1
    assert tokenizer.encode(rendered).count(0) == 2, "what encode_chat is for"
    builtin = load(str(folder), chat_template="chatml")
    ids = builtin.encode_chat(builtin.render_chat(HELLO))
    assert ids[0] == 0 and ids.count(0) == 1
    silent = load(str(save(tmp_path / "silent", "byte_level", chat_template=JINJA.replace("{{ bos_token }}", ""))))
    assert 0 not in silent.encode_chat(silent.render_chat(HELLO)), "a template that writes none wants none"


def test_batches_are_encoded_as_their_texts(tmp_path: Path) -> None:
    texts = ["one two", "", "日本語 👋🏽"]
    for kind in MAKERS:
        tokenizer = tokenizer_of(kind)
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    raw = raw_of("byte_level").from_str(raw_of("byte_level").to_str())
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    folder = save(tmp_path, "byte_level")
    raw.save(str(folder / "tokenizer.json"))
    text = "a long text with more than three tokens"
    assert load(str(folder)).encode(text) == tokenizer_of("byte_level").encode(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "not a readable tokenizer"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer can be loaded"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, change: Any, says: str) -> None:
    folder = save(tmp_path, "byte_level")
    change(folder)
    with pytest.raises(ConfigError, match=says) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "one-word"])
def test_a_path_that_is_neither_a_folder_nor_a_hub_id_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load(path)


def test_slow_mode_gives_the_same_ids_through_transformers(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    text = "one two 日本 👋🏽"
    fast, slow = load(str(folder)), load(str(folder), mode="slow")
    assert slow.encode(text) == fast.encode(text)
    assert slow.decode(fast.encode(text)) == text
    assert (slow.vocab_size, slow.bos_id, slow.eos_ids) == (fast.vocab_size, fast.bos_id, fast.eos_ids)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", ["auto", "slow"])
def test_a_text_is_cut_off_as_transformers_does(tmp_path: Path, mode: str, side: Side) -> None:
    from transformers import AutoTokenizer

    raw = raw_of("byte_level").from_str(raw_of("byte_level").to_str())
    ends = [("<s>", 0), ("<|im_end|>", raw.token_to_id("<|im_end|>"))]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=ends)
    folder = save(tmp_path, "byte_level")
    raw.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load(str(folder), mode=mode)
    reference = AutoTokenizer.from_pretrained(str(folder), truncation_side=side)
    for text in ("one two three", "日本 One", "<s> one <|im_end|>", ""):
        for most in (1, 2, 3, 5, 100):
            wanted = reference.encode(text, truncation=True, max_length=most)
            assert tokenizer.encode(text, most=most, side=side) == wanted
            assert wanted[0] == ends[0][1] and wanted[-1] == ends[1][1]
        whole = tokenizer.encode(text, add_special_tokens=False)
        cut = whole[:2] if side == "right" else whole[-2:]
        assert tokenizer.encode(text, add_special_tokens=False, most=2, side=side) == cut
    tokenizer.make_lower()
    assert tokenizer.encode("ONE Two <s>") == tokenizer.encode("one two <s>") == reference.encode("one two <s>")
    with pytest.raises(FieldError, match="not valid Unicode"):
        tokenizer.encode("\ud800", most=9)


def test_a_tokenizer_in_python_cuts_on_either_side_and_knows_itself_what_a_capital_is() -> None:
    from transformers import ByT5Tokenizer

    own, loaded = ByT5Tokenizer(), ByT5Tokenizer(truncation_side="left")
    engine = PythonEngine(own)
    assert engine.encode("One two", True, 4) == [*engine.encode("One", False), loaded.eos_token_id]
    assert engine.encode("One two", True, 4, "left") == loaded.encode("One two", truncation=True, max_length=4)
    engine.make_lower()
    assert vars(own)["do_lower_case"] and engine.encode("ONE", True) == loaded.encode("ONE")


@pytest.mark.parametrize(
    "own",
    [
        normalizers.Sequence([normalizers.Replace("A", "x"), normalizers.Lowercase()]),
        normalizers.Sequence([normalizers.Replace("A", "x"), normalizers.NFC()]),
        normalizers.Replace("A", "x"),
        normalizers.Lowercase(),
        None,
    ],
)
def test_capitals_are_made_small_first_unless_the_tokenizer_does_it_itself(own: normalizers.Normalizer | None) -> None:
    raw = raw_of("byte_level").from_str(raw_of("byte_level").to_str())
    if own is not None:
        raw.normalizer = own
    engine = FastEngine(raw)
    engine.make_lower()
    itself = isinstance(own, normalizers.Sequence) and isinstance(own[1], normalizers.Lowercase)
    assert engine.encode("ABC", False) == engine.encode("xbc" if itself else "abc", False)
    assert engine.encode("ABC", False) != engine.encode("abc" if itself else "xbc", False)


def test_loading_imports_neither_transformers_nor_torch_and_is_quick(tmp_path: Path) -> None:
    folder = save(tmp_path, "byte_level", chat_template=JINJA)
    code = (
        "import sys\nfrom sglang.text.tokenizer import load\n"
        f"load({str(folder)!r}).encode('x')\nprint(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    took = []
    for _ in range(5):
        began = time.perf_counter()
        load(str(folder))
        took.append(time.perf_counter() - began)
    assert min(took) < 0.25, "about 5 ms on an idle machine"


def chat(tmp_path: Path, template: str | None = JINJA, **kwargs: Any) -> Tokenizer:
    return load(str(save(tmp_path, "byte_level", chat_template=template)), **kwargs)


def test_parts_of_a_message_are_joined_and_images_are_refused(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path)
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert tokenizer.render_chat([{"role": "user", "content": parts}]) == tokenizer.render_chat(HELLO)
    image = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    with pytest.raises(FieldError, match="image_url") as caught:
        tokenizer.render_chat([*HELLO, {"role": "user", "content": [*parts, image]}])
    assert caught.value.field == "messages[1].content"
    for content in (3, {"a": 1}, [3]):
        with pytest.raises(FieldError):
            tokenizer.render_chat([{"role": "user", "content": content}])
    with pytest.raises(FieldError, match="at least one"):
        tokenizer.render_chat([])


@pytest.mark.parametrize("template", [JINJA, JINJA.replace("m.content", "m.content | trim"), None])
def test_a_final_message_can_be_left_open(tmp_path: Path, template: str | None) -> None:
    tokenizer = chat(tmp_path, template)
    begun = [*HELLO, {"role": "assistant", "content": "The answer is"}]
    text = tokenizer.render_chat(begun, continue_final_message=True)
    assert text.endswith("The answer is")
    assert text.startswith(tokenizer.render_chat(HELLO)[:-12])
    spaced = tokenizer.render_chat([*HELLO, {"role": "assistant", "content": "is "}], continue_final_message=True)
    assert spaced.endswith("is" if template and "trim" in template else "is ")
    with pytest.raises(FieldError) as caught:
        tokenizer.render_chat([*HELLO, {"role": "assistant", "content": ""}], continue_final_message=True)
    assert caught.value.field == "continue_final_message"


def test_without_any_template_the_models_path_decides(tmp_path: Path) -> None:
    folder = str(save(tmp_path, "byte_level"))
    assert load(folder).render_chat(HELLO) == "USER:hello\nASSISTANT:"
    qwen = load(folder, model_path="Qwen/Qwen2-7B-Instruct")
    assert qwen.render_chat(HELLO).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert qwen.chat_stop_strings == ("<|im_end|>",)
