"""Layers whose additions, norms and rounding are one kernel compute what they compute step by step."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from sglang.kernels import stream
from sglang.layers.stream import Addition
from sglang.models.decoder import Model
from sglang.models.families.gemma2 import gemma2
from sglang.models.families.granite import granite, granite_moe
from sglang.models.families.llama import llama
from sglang.models.families.olmo2 import olmo2
from sglang.models.quantized import linears
from sglang.models.spec import Decoder
from sglang.quant.float8 import Float8
from sglang.quant.late import Late
from sglang.quant.rounding import rounded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "residual_multiplier": 0.3, "query_pre_attn_scalar": 64, "sliding_window": 8,
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "num_local_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 64, "q_lora_rank": None, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip
FAMILIES = [llama, gemma2, granite, olmo2, granite_moe]


class Itself:
    """Attention that sees each token alone."""

    features: ClassVar[frozenset[str]] = frozenset()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Any) -> Tensor:
        return (q * 0.5 + v.repeat_interleave(q.shape[1] // v.shape[1], 1)).flatten(1)


def made(spec: Decoder, eight_bits: bool) -> Model:
    model = Model(spec, 64, DEVICE, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, place in model.places().items():
        scale = 0.3 if "norm" in name or "post" in name else 1.5 * place.shape[-1] ** -0.5
        place.copy_(torch.randn(place.shape, generator=generator) * scale)
    for prefix, linear in linears(model).items():
        if eight_bits and prefix != "head":
            dense = linear.store
            product = Float8(rounded(dense.weight, "fp8"), DEVICE)  # type: ignore[attr-defined]
            product._ours, product.dtype = True, torch.float32  # type: ignore[misc]
            linear.store = Late(dense.inputs, dense.parts, dense.bias, DEVICE, torch.float32, None, Counter())  # type: ignore[attr-defined]
            linear.store._product = product  # type: ignore[attr-defined]
    model.finish()
    return model


def states(model: Model, joins: bool, rows: int = 5) -> Tensor:
    for layer in model.layers:
        for addition in (layer._add_attn, layer._add_mlp):
            addition._joins = joins
    tokens = torch.arange(rows, device=DEVICE) * 7 % 96
    return model.forward(tokens, tokens % 64, Itself())  # type: ignore[arg-type]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bool]]:
    """What each launch of the kernel did."""
    done: list[dict[str, bool]] = []
    real = stream.join

    def join(*args: Any, **kwargs: Any) -> Any:
        read, scales = real(*args, **kwargs)
        done.append({"norm": read is not args[2], "rounded": scales is not None})
        return read, scales

    monkeypatch.setattr(stream, "join", join)
    return done


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_layers_joined_equal_layers_step_by_step(
    family: Callable[[Any], Decoder], joined: list[dict[str, bool]]
) -> None:
    model = made(family(TINY), False)
    wanted = states(model, False)
    assert not joined
    got = states(model, True)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)
    # A plain residual is added by the product itself, unless experts computed it.
    assert len(joined) == {"llama": 0, "granite_moe": 4}.get(family.__name__, 4)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_8_bit_inputs_are_rounded_on_the_way(
    rows: int, joined: list[dict[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.kernels import fp8

    calls: list[Any] = []
    real = fp8.rounded
    monkeypatch.setattr(fp8, "rounded", lambda *args: calls.append(args) or real(*args))
    model = made(llama(TINY), True)
    with monkeypatch.context() as apart:
        apart.setattr(Float8, "takes", None)
        for layer in model.layers:
            layer._add_attn.finish(), layer._add_mlp.finish()
        wanted = states(model, False, rows)
        assert len(calls) == 8, "four products a layer"
    calls.clear()
    for layer in model.layers:
        layer._add_attn.finish(), layer._add_mlp.finish()
    got = states(model, True, rows)
    # Where a sum's order decides, a code of 3 bits differs.
    assert torch.linalg.norm(got - wanted) < 0.01 * torch.linalg.norm(wanted)
    # What attention returns, and what the first layer reads; of few rows, what the gate's product left too.
    assert len(calls) == 1 + 2 + (2 if rows <= stream.FEW else 0)
    assert [one["rounded"] for one in joined] == [True, True, True, False]
    assert not joined[-1]["norm"], "the last norm is of fewer tokens"


def test_readers_that_differ_read_values(joined: list[dict[str, bool]]) -> None:
    model = made(llama(TINY), True)
    plain = made(llama(TINY), False)
    model.layers[1].attn.qkv = plain.layers[1].attn.qkv  # type: ignore[union-attr]
    for layer in model.layers:
        layer._add_attn.finish(), layer._add_mlp.finish()
    states(model, True)
    assert [one["rounded"] for one in joined] == [True, False, True, False]


def test_norms_of_other_kinds_are_left_alone() -> None:
    from sglang.layers.norm import LayerNorm

    one = Addition(None, 1.0, torch.device("cuda"))
    one.then(LayerNorm((8,), 1e-5, torch.device("cpu"), torch.float32, True), lambda: None)
    one.finish()
    assert not one._joins
