"""Experts by their definition in float64, one token and one expert at a time."""

import dataclasses
import zlib
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sglang.layers.moe import ExpertMlp, MoE, Routing, route
from sglang.quant.rounding import dummy

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def filled(module: Any, prefix: str = "m") -> Any:
    """The same values in places of the same name."""
    for name, place in module.places(prefix).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        place.copy_(torch.randn(place.shape, generator=generator) * place.shape[-1] ** -0.5)
    return module


def by_hand(m: ExpertMlp, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, inputs: bool) -> torch.Tensor:
    places = {name: place.double().cpu() for name, place in m.places("m").items()}
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, token in enumerate(x.double().cpu()):
        for weight, e in zip(weights[t].double().cpu(), ids[t].tolist(), strict=True):
            read = token * weight if inputs else token
            gate, up = (places[f"m.{e}.{p}.weight"] @ read + places.get(f"m.{e}.{p}.bias", 0) for p in ("gate", "up"))
            if m._limit is None:
                wide = F.silu(gate) * up
            else:
                gate, up = gate.clamp(max=m._limit), up.clamp(-m._limit, m._limit)
                wide = gate * torch.sigmoid(1.702 * gate) * (up + 1)
            given = places[f"m.{e}.down.weight"] @ wide + places.get(f"m.{e}.down.bias", 0)
            out[t] += given if inputs else given * weight
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("tokens", [1, 7, 60])
@pytest.mark.parametrize(
    ("bias", "limit", "inputs"), [(False, None, False), (True, 0.5, False), (False, None, True)], ids=str
)
def test_experts_equal_their_definition(
    bias: bool, limit: float | None, inputs: bool, tokens: int, dtype: torch.dtype, bound: float, device: str
) -> None:
    m = filled(ExpertMlp(6, 32, 16, "silu", bias, limit, torch.device(device), dtype))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, 32, generator=generator).to(device, dtype)
    # Experts 4 and 5 are never taken.
    weights, ids = route(Routing(4, 2), torch.randn(tokens, 4, generator=generator).to(device))
    expected = by_hand(m, x, weights, ids, inputs)
    before = m(x, weights, ids, inputs)
    m.finish()
    out = m(x, weights, ids, inputs)
    assert (before.double().cpu() - expected).abs().max() < bound
    assert out.dtype == dtype and out.shape == x.shape
    assert (out.double().cpu() - expected).abs().max() < bound


def test_a_token_gets_the_same_whoever_else_is_in_the_step() -> None:
    m = filled(ExpertMlp(8, 32, 16, "silu", False, None, CPU, torch.float32))
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    weights, ids = route(Routing(8, 3), torch.randn(40, 8, generator=torch.Generator().manual_seed(2)))
    together = m(x, weights, ids)
    for t in (0, 17, 39):
        assert torch.allclose(m(x[t : t + 1], weights[t : t + 1], ids[t : t + 1])[0], together[t], atol=1e-6)


LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.0, 0.0, 3.0, -2.0, 0.1], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
PLAIN = Routing(8, 2)


def test_weights_are_shares_of_the_chosen_unless_they_stay_as_they_are() -> None:
    p = LOGITS.softmax(-1)
    weights, ids = route(PLAIN, LOGITS)
    assert ids.tolist() == [[5, 0], [7, 6]]
    assert torch.allclose(weights, torch.stack([p[0, [5, 0]] / p[0, [5, 0]].sum(), p[1, [7, 6]] / p[1, [7, 6]].sum()]))
    raw = dataclasses.replace(PLAIN, norm=None, scale=2.5)
    assert torch.allclose(route(raw, LOGITS)[0][0], 2.5 * p[0, [5, 0]])
    squares = dataclasses.replace(PLAIN, norm=2.0)
    assert torch.allclose(route(squares, LOGITS)[0].square().sum(-1), torch.ones(2))


def test_a_correction_chooses_and_does_not_weigh() -> None:
    routing = dataclasses.replace(PLAIN, score="sigmoid", norm=None, correction=True)
    correction = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    weights, ids = route(routing, LOGITS, correction)
    assert ids.tolist() == [[1, 5], [1, 7]]
    assert torch.allclose(weights, LOGITS.sigmoid().gather(1, ids))


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        (1, [5, 4]),  # the best expert is 5: of the pairs, that of 4 and 5
        (2, [3, 2]),  # 2 and 3 are better together
    ],
)
def test_groups_limit_the_choice(group_by: Any, expected: list[int]) -> None:
    logits = torch.tensor([[0.0, 0.0, 2.0, 2.5, -9.0, 3.0, 0.0, 0.0]])
    routing = dataclasses.replace(PLAIN, score="sigmoid", groups=4, top_groups=1, group_by=group_by)
    assert route(routing, logits)[1][0].tolist() == sorted(expected, key=lambda e: -logits[0, e].item())


def test_a_softcap_flattens_what_is_far_apart() -> None:
    capped = dataclasses.replace(PLAIN, softcap=1.0)
    assert torch.allclose(route(capped, LOGITS)[0], route(PLAIN, LOGITS.tanh())[0])


def test_shared_experts_are_added_through_their_gate() -> None:
    def made(shared: int, gate: bool) -> MoE:
        m = MoE(32, PLAIN, 16, shared, gate, "silu", False, None, CPU, torch.float32)
        filled(m)
        for name, linear in m.linears().items():
            filled(linear, name)
            linear.finish()
        return m

    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(4))
    bare, shared, gated = made(0, False), made(24, False), made(24, True)
    assert shared.shared is not None and gated.shared_gate is not None
    extra = shared.shared(x)
    assert torch.allclose(shared(x), bare(x) + extra, atol=1e-6)
    assert torch.allclose(gated(x), bare(x) + extra * (x @ gated.shared_gate.T).sigmoid(), atol=1e-6)
    assert torch.allclose(gated.plus(x, x), gated(x) + x)


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("shared, gate", 24), ("shared, gate", 48), ("shared", 16), ("shared, correction", 24), ("bias", 0)],
)
def test_what_the_kernels_do_is_what_torch_does(kind: str, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, as on a device: scores, choice, experts, the shared part and what is added to."""
    pytest.importorskip("triton")
    routing = (
        Routing(6, 2, score="sigmoid", correction=True) if "correction" in kind else Routing(6, 2, bias=kind == "bias")
    )
    limit = 0.5 if kind == "bias" else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr("sglang.layers.moe.MERGES", ("cpu", "cuda"))
    monkeypatch.setattr("sglang.layers.moe.MERGED_MOST", 3)
    m = filled(MoE(32, routing, 16, shared, "gate" in kind, "silu", kind == "bias", limit, device, torch.float32))
    for name, linear in m.linears().items():
        filled(linear, name)
    some = [
        [torch.randn(tokens, 32, generator=torch.Generator().manual_seed(n)).to(device) for n in (5, 6)]
        for tokens in (1, 3, 5)
    ]
    expected = [m(x) for x, _ in some]
    monkeypatch.setattr(ExpertMlp, "finish", lambda self: setattr(self, "fused", True))
    m.finish()
    assert m.capturable and m._pieces == (shared // 16 if shared % 16 == 0 else 0)
    for (x, other), wanted in zip(some, expected, strict=True):
        assert torch.allclose(m(x), wanted, atol=1e-5)
        assert torch.allclose(m.plus(x, other.clone()), wanted + other, atol=1e-5)


def test_experts_of_8_bits_are_multiplied_as_they_are() -> None:
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain, narrow = (ExpertMlp(3, 256, 128, "silu", False, None, device, torch.float32) for _ in range(2))
    filled(plain)
    for one in (narrow.gate_up, narrow.down):
        one.narrow("fp8", Counter())
        for place, take in one.takers("m").items():
            take(plain.places("m")[place])
    assert narrow.gate_up.codes is not None and narrow.down.codes is not None
    plain.fused = narrow.fused = True
    for tokens in (1, 20):
        x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(1)).to(device)
        weights, ids = route(Routing(3, 2), x[:, :3])
        wanted = plain(x, weights, ids)
        # 3 bits of mantissa, of weights and twice of inputs, which the interpreter cuts off.
        assert torch.linalg.norm(narrow(x, weights, ids) - wanted) < 0.15 * torch.linalg.norm(wanted)
    for one in (narrow.gate_up, narrow.down):
        one.widen()
    assert torch.linalg.norm(narrow(x, weights, ids) - wanted) < 0.06 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("kind", ["int4", "mxfp4"])
def test_experts_of_4_bits_are_multiplied_as_they_are(kind: str) -> None:
    """GPT-OSS's: with biases, a limit, and sides that no piece of 128 columns fills."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    plain, packed = (ExpertMlp(3, 96, 160, "silu", True, 2.0, device, dtype) for _ in range(2))
    filled(plain)
    for one, full in ((packed.gate_up, plain.gate_up), (packed.down, plain.down)):
        one.narrow(None, Counter())
        for place, bias in one.places("m").items():
            if place.endswith(".bias"):
                bias.copy_(plain.places("m")[place])
        for place, take in one.takers("m").items():
            weight = dummy(plain.places("m")[place], kind)
            take(weight)
            plain.places("m")[place].copy_(weight.dense())
        assert one.packed is not None and one.packed.bytes < 0.5 * full.weight.numel() * dtype.itemsize
    plain.fused = packed.fused = True
    bound = 2e-5 if device.type == "cpu" else 0.01
    for tokens in (1, 9):
        x = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        weights, ids = route(Routing(3, 2), x[:, :3])
        wanted = plain(x, weights, ids)
        assert torch.linalg.norm(packed(x, weights, ids) - wanted) < bound * torch.linalg.norm(wanted)
    for one in (packed.gate_up, packed.down):
        one.widen()
    assert not packed.gate_up.narrowed
    assert torch.linalg.norm(packed(x, weights, ids) - wanted) < bound * torch.linalg.norm(wanted)
