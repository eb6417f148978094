from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sglang.attention.base import Feature, Look, Rows
from sglang.layers.rope import Rope
from sglang.models.decoder import Model, few
from sglang.models.spec import Decoder


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_a_few_layers_stand_for_all(kinds: list[str]) -> None:
    some = list(few(kinds))
    assert some == sorted(set(some)) and some[0] == 0 and some[-1] == len(kinds) - 1
    assert {(kinds[a], kinds[b]) for a, b in pairwise(some)} == set(pairwise(kinds))


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ("a", [0]),
        ("aa", [0, 1]),
        ("a" * 32, [0, 1, 31]),  # a dense model
        ("ddd" + "m" * 58, [0, 1, 2, 3, 4, 60]),  # DeepSeek V3's
        ("wf" * 18, [0, 1, 2, 35]),  # every other layer looks through a window
    ],
)
def test_alike_layers_are_left_out(kinds: str, wanted: Sequence[int]) -> None:
    assert list(few(kinds)) == wanted


def test_an_abridged_model_computes_a_few_layers_and_is_whole_again() -> None:
    spec = Decoder(
        hidden=16, layers=9, heads=2, kv_heads=1, head_dim=8, inter=16, vocab=10, norm_eps=1e-5, rope=Rope(8, 1e4),
        attn_scale=1.0,
    )  # fmt: skip
    model = Model(spec, 8, torch.device("cpu"), torch.float32)
    for place in model.places().values():
        torch.nn.init.normal_(place, std=0.1)
    model.finish()
    layers: list[int] = []

    class Backend:
        features: ClassVar[frozenset[Feature]] = frozenset()

        def plan(self, rows: Rows) -> None: ...

        def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
            layers.append(layer)
            return q.flatten(1)

    tokens = torch.arange(3)
    whole = model.forward(tokens, tokens, Backend())
    assert layers == list(range(9))
    with pytest.raises(ZeroDivisionError), model.abridged():
        layers.clear()
        model.forward(tokens, tokens, Backend())
        assert layers == [0, 1, 8]
        raise ZeroDivisionError
    assert torch.equal(model.forward(tokens, tokens, Backend()), whole)
