"""A few rows times a weight, in parts: their sum is the product."""

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import matvec, skinny
from sglang.kernels.skinny import Tile, gated, split, tile_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("m", "rows", "inputs", "tile"),
    [(2, 64, 256, None), (17, 100, 300, None), (32, 192, 640, Tile(32, 64, 3, 3)), (5, 130, 129, Tile(splits=2))],
)
def test_parts_are_those_of_the_product(m: int, rows: int, inputs: int, tile: Tile | None) -> None:
    random = torch.Generator().manual_seed(m)
    wide = torch.randn(m, 2 * inputs, generator=random)
    weight = torch.randn(rows, inputs, generator=random)
    x = wide.to(DEVICE)[:, inputs:]  # rows that do not lie side by side
    parts = split(x, weight.to(DEVICE), tile)
    assert parts.shape == ((tile or tile_of(m, rows, inputs)).splits, m, rows)
    wanted = wide[:, inputs:].double() @ weight.double().T
    assert (parts.double().sum(0).cpu() - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("m", "rows", "inputs", "tile"), [(2, 64, 256, Tile()), (17, 102, 300, Tile(32, 64)), (32, 130, 129, Tile(16, 256))]
)
def test_gate_and_up_are_read_in_one_pass(m: int, rows: int, inputs: int, tile: Tile) -> None:
    random = torch.Generator().manual_seed(m)
    wide = torch.randn(m, 2 * inputs, generator=random)
    weight = torch.randn(rows, inputs, generator=random)
    x = wide.to(DEVICE)[:, inputs:]  # rows that do not lie side by side
    wanted = wide[:, inputs:].double() @ weight.double().T
    half = rows // 2
    wanted = torch.nn.functional.silu(wanted[:, :half]) * wanted[:, half:]
    assert (gated(x, weight.to(DEVICE), "silu", tile).double().cpu() - wanted).abs().max() < 1e-3


def test_programs_for_all_multiprocessors_and_none_without_inputs() -> None:
    assert tile_of(17, 4096, 4096).splits == tile_of(32, 4096, 14336).splits == 2
    assert tile_of(2, 4096, 4096).splits == tile_of(16, 4096, 14336).splits == 4
    assert tile_of(32, 8192, 4096).splits == 1
    assert tile_of(32, 64, 256).splits == 2, "no more parts than there are steps of 128 inputs"
    for m, rows, inputs in ((2, 1024, 4096), (32, 896, 4864), (32, 2048, 11008)):
        tile = tile_of(m, rows, inputs)
        steps = -(-inputs // tile.inputs)
        assert (tile.splits - 1) * -(-steps // tile.splits) < steps, "a part without inputs"


def fails(*_: object) -> bool:
    raise RuntimeError("no compiler")


def test_what_fails_or_differs_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for agrees, said in ((fails, "no compiler"), (lambda _: False, "results differ"), (lambda _: True, "")):
        caplog.clear()
        monkeypatch.setattr(skinny, "_agrees", agrees)
        skinny.works.cache_clear()
        assert skinny.works(torch.bfloat16) is (said == "")
        assert said in caplog.text and len(caplog.records) == (said != "")
    skinny.works.cache_clear()


def test_early_starts_are_given_up_before_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for agrees, found in (
        (lambda _: True, (True, True)), (lambda _: not matvec.switch.chain, (True, False)), (fails, (False, False)),
    ):  # fmt: skip
        monkeypatch.setattr(matvec, "switch", matvec._Switch())
        monkeypatch.setattr(matvec, "_agrees", agrees)
        matvec.works.cache_clear()
        assert (matvec.works(torch.bfloat16), matvec.switch.chain) == found
    matvec.works.cache_clear()
