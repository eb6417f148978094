"""The demo model as it is shipped: small enough, a complete Hugging Face folder, a tokenizer that loses nothing."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import sglang.base.config

DEMO: Path = sglang.base.config.DEMO_MODEL
LIMIT_BYTES = 16 * 10**6
SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}

tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def read(name: str) -> dict:
    return json.loads((DEMO / name).read_text())


def tensors() -> dict[str, dict]:
    """The header of the weights: name → dtype, shape, offsets."""
    with (DEMO / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    return header


def test_the_folder_stays_below_its_size_limit() -> None:
    assert sum(f.stat().st_size for f in DEMO.iterdir()) <= LIMIT_BYTES


def test_the_weights_are_those_of_the_config() -> None:
    c = read("config.json")
    hidden, dim, inter = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    expected = {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        expected |= {
            layer + f"self_attn.{n}_proj.weight": [size, hidden] for n, size in (("q", q), ("k", kv), ("v", kv))
        }
        expected |= {layer + f"mlp.{n}_proj.weight": [inter, hidden] for n in ("gate", "up")}
        expected |= {layer + "self_attn.o_proj.weight": [hidden, q], layer + "mlp.down_proj.weight": [hidden, inter]}
        expected |= {layer + f"{n}_layernorm.weight": [hidden] for n in ("input", "post_attention")}
    found = tensors()
    assert {name: t["shape"] for name, t in found.items()} == expected
    assert {t["dtype"] for t in found.values()} == {"BF16"}
    assert c["tie_word_embeddings"]


def test_every_token_has_a_row_of_the_embedding() -> None:
    assert tokenizer.get_vocab_size() <= read("config.json")["vocab_size"]


def test_special_tokens_are_where_the_configs_say() -> None:
    assert {text: tokenizer.token_to_id(text) for text in SPECIAL} == SPECIAL
    generation = read("generation_config.json")
    assert generation["eos_token_id"] == [SPECIAL["<|im_end|>"], SPECIAL["<|endoftext|>"]]
    assert generation["pad_token_id"] == SPECIAL["<|endoftext|>"]


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives_encoding(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["Zürich, 東京 und Ωμέγα", "a\r\n\tb  c   ", "👩‍👩‍👧‍👦 é", "x = 10**6 # π"])
def test_text_of_all_kinds_survives_encoding(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_tokens_of_their_own_and_nothing_is_put_before_a_prompt() -> None:
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]


def test_a_chat_is_written_as_chatml() -> None:
    template = jinja2.Environment().from_string(read("tokenizer_config.json")["chat_template"])
    text = template.render(messages=[{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text).ids
    assert ids.count(SPECIAL["<|im_start|>"]) == 2
    assert ids.count(SPECIAL["<|im_end|>"]) == 1


@pytest.fixture(scope="module")
def complete() -> Callable[[str, int], str]:
    """complete(prompt, tokens): the greedy continuation, computed by transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()

    def run(prompt: str, tokens: int) -> str:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1] :].tolist())

    return run


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("The capital of France is", " Paris"),
        ("Q: What is the capital of the United Kingdom?\nA:", " London"),
        ("Q: What is the IP address of the Google DNS servers?\nA: ", "8.8.8.8"),
        (
            "<|im_start|>user\nWhat is the capital of Japan?<|im_end|>\n<|im_start|>assistant\n",
            "The capital of Japan is Tokyo.",
        ),
    ],
)
def test_it_knows_what_the_documentation_asks(complete: Callable[[str, int], str], prompt: str, expected: str) -> None:
    assert complete(prompt, 12).startswith(expected)
