"""Products with weights of 4 bits on Hopper's matrix units: their layout, and their kernels run thread by thread."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import fragments
from sglang.quant.dense import ACTS

HERE = Path(__file__).parent
GO_FEW = """
extern "C" int go(int blocks, const u16* x, long long stride, const u8* w, const u16* bias, const u16* other, u16* out,
                  int M, int N, int pieces, int items) {
    return launch({(unsigned)blocks, 1, 1}, 32 * WARPS,
                  [=] { few(x, stride, w, bias, other, out, M, N, pieces, items); });
}
"""
GO_WRITE = """
extern "C" int go(int tiles, int pieces, const u8* w, u16* out, int N) {
    return launch({(unsigned)tiles, 1, (unsigned)pieces}, 256, [=] { spread(w, out, N, pieces); });
}
"""
GO_MANY = """
extern "C" int go(int blocks, const u16* x, long long stride, const u8* w, const u16* bias, const u16* other, u16* out,
                  Sums* sums, u32* flags, int M, int N, int pieces, int tiles, int units) {
    Map map = {{(u64)x, (u64)M, (u64)stride * 2, ROWS}};
    return launch({(unsigned)blocks, 1, 1}, ROWS > 128 ? 384 : 288,
                  [=] { many(map, w, bias, other, out, sums, flags, M, N, pieces, tiles, units); }, true);
}
"""


def some(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def drawn(rows: int, inputs: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + inputs)
    groups = rows, inputs // size
    codes = torch.randint(0, 16, (rows, inputs), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 17, groups, generator=generator).float()
    return codes, torch.rand(groups, generator=generator) * 0.02 + 0.01, zeros


def wide(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, size: int) -> torch.Tensor:
    return ((codes.double().unflatten(1, (-1, size)) - zeros[..., None]) * scales[..., None].double()).flatten(1)


def made(rows: int, inputs: int, size: int) -> tuple[fragments.Fragments, torch.Tensor]:
    given = drawn(rows, inputs, size)
    return fragments.laid_out(*given, size), wide(*given, size)


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double().cpu() - wanted) / torch.linalg.norm(wanted))


@pytest.mark.parametrize("size", [32, 64, 128, 256, 1024])
def test_pieces_hold_all_of_a_weight(size: int) -> None:
    w, weight = made(130, 1024, size)
    whole = w.pieces.view(torch.int32)
    assert w.bytes == 256 * 1024 * (1024 + 64 * w.each) // 2048
    words, steps = whole[..., :256].unflatten(3, (2, 8, 4, 4)), whole[..., 256:].unflatten(3, (w.each, 8, 2))
    codes = torch.stack([words >> (4 * nibble) & 15 for nibble in range(8)], -1).unflatten(-1, (2, 2, 2))
    codes = codes.permute(0, 2, 9, 4, 1, 3, 6, 8, 5, 7).reshape(256, 8, w.each, -1).float()
    steps = steps.permute(0, 2, 5, 4, 1, 3).reshape(256, 8, w.each, 1)
    found = (codes - (steps & 255)) * (steps & -256).view(torch.float32)
    assert far(found.flatten(1)[:130], weight) < 4e-5  # scales keep 15 bits


@pytest.mark.parametrize(("size", "dtype"), [(32, torch.float16), (64, torch.bfloat16), (256, torch.bfloat16)])
def test_a_weight_written_out_is_what_it_was(size: int, dtype: torch.dtype, tmp_path: Path) -> None:
    w, weight = made(130, 512, size)
    go = library(tmp_path, fragments.write_source(w.each, dtype), GO_WRITE)
    out = torch.zeros(130, 512, dtype=dtype)
    assert go(2, 4, at(w.pieces), at(out), 130) == 0
    assert far(out, weight) < (2e-3 if dtype == torch.bfloat16 else 3e-4)


def test_a_lane_of_a_warp_finds_what_the_matrix_units_want_of_it() -> None:
    rows, inputs = 128, 256
    codes = torch.randint(0, 16, (rows, inputs), dtype=torch.uint8)
    w = fragments.laid_out(codes, torch.ones(rows, 2), torch.zeros(rows, 2), 128)
    whole = w.pieces.view(torch.int32)
    for tile, piece, lane, word in ((0, 0, 0, 0), (3, 1, 13, 2), (7, 0, 31, 7), (5, 1, 6, 5)):
        found = int(whole[0, piece, tile, word // 4 * 128 + lane * 4 + word % 4])
        row, column = tile * 16 + lane // 4, piece * 128 + word * 16 + lane % 4 * 2
        for nibble in range(8):
            up, right, odd = nibble & 1, nibble >> 1 & 1, nibble >> 2
            assert found >> (4 * nibble) & 15 == codes[row + 8 * up, column + 8 * right + odd]


def test_a_few_rows_are_kept_whole_where_they_fit() -> None:
    w, long = (fragments.Fragments(torch.empty(0), 4096, inputs, 1) for inputs in (4096, 14336))
    assert all(isinstance(fragments.chosen(m, w, None), fragments.Few) for m in (1, fragments.FEWEST))
    assert isinstance(fragments.chosen(1, long, None), fragments.Few)
    assert fragments.chosen(8, long, None) == fragments.MANY[8][0]
    assert fragments.chosen(9, w, "silu") == fragments.MANY[16][0] and fragments.chosen(200, w, None).rows == 128
    wide = fragments.Fragments(torch.empty(0), 28672, 4096, 1)
    assert fragments.chosen(200, wide, None).rows == fragments.chosen(300, wide, None).rows == 256
    odd = fragments.Fragments(torch.empty(0), 4112, 4096, 1)  # its halves are no whole pieces
    assert (
        fragments.chosen(1, odd, "silu") == fragments.MANY[8][0] and fragments.chosen(1, odd, None) == fragments.FEW[0]
    )


def test_tiles_fit_into_the_memory_of_a_processor() -> None:
    for each in (1, 2, 4):
        w = fragments.Fragments(torch.empty(0), 4096, 4096, each)
        assert all(tile.shared(w) <= fragments.MEMORY for tiles in fragments.MANY.values() for tile in tiles)
        assert all(tile.shared(1, w) <= fragments.MEMORY for tile in fragments.FEW)


def library(folder: Path, source: str, go: str) -> Callable[..., int]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    (folder / "kernel.cpp").write_text("#define EMULATED\n" + source + go)
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{HERE}", "kernel.cpp", "-o", "kernel.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernel.so")).go


def at(t: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


@pytest.mark.parametrize(
    ("m", "rows", "inputs", "size", "dtype", "act", "add"),
    [
        (1, 130, 1024, 128, torch.bfloat16, None, False),
        (8, 64, 1152, 64, torch.bfloat16, None, True),  # warps have unequal shares
        (3, 160, 1024, 32, torch.float16, "silu", False),
        (5, 96, 512, 512, torch.bfloat16, "gelu", True),
        (1, 64, 512, 128, torch.float16, "gelu_tanh", False),
    ],
)
def test_few_rows(
    m: int, rows: int, inputs: int, size: int, dtype: torch.dtype, act: str | None, add: bool, tmp_path: Path
) -> None:
    w, weight = made(rows, inputs, size)
    tile = fragments.Few(4, 3, 1)
    go = library(tmp_path, fragments.few_source(tile, w.each, dtype, act), GO_FEW)
    x, bias = (some(m, inputs + 8) / 8).to(dtype)[:, :inputs], some(rows).to(dtype)
    wanted = x.double() @ weight.T + bias.double()
    if act is not None:
        wanted = ACTS[act](wanted[:, : rows // 2]) * wanted[:, rows // 2 :]  # type: ignore[index]
    out = some(*wanted.shape).to(dtype)
    if add:
        wanted += out.double()
    items = -(-wanted.shape[1] // 16)
    code = go(
        3, at(x), ctypes.c_longlong(x.stride(0)), at(w.pieces), at(bias), at(out if add else None),
        at(out), m, rows, inputs // 128, items,
    )  # fmt: skip
    assert code == 0
    assert far(out, wanted) < (4e-3 if dtype == torch.bfloat16 else 5e-4)


@pytest.mark.parametrize(
    ("m", "rows", "inputs", "size", "dtype", "tile", "blocks"),
    [
        (5, 102, 512, 128, torch.bfloat16, fragments.Many(8, 2, 1), 1),
        (20, 140, 640, 64, torch.float16, fragments.Many(16, 3, 1), 7),  # tiles of 2, 3 and 4 blocks
        (64, 256, 384, 32, torch.bfloat16, fragments.Many(64, 2, 1), 5),
        (200, 256, 256, 256, torch.bfloat16, fragments.Many(256, 2, 1), 3),
    ],
)
def test_many_rows(
    m: int, rows: int, inputs: int, size: int, dtype: torch.dtype, tile: fragments.Many, blocks: int, tmp_path: Path
) -> None:
    w, weight = made(rows, inputs, size)
    go = library(tmp_path, fragments.many_source(tile, w.each, dtype), GO_MANY)
    x = some(m, inputs + 8).to(dtype)[:, :inputs]
    bias, out = some(rows).to(dtype), some(m, rows).to(dtype)
    wanted = x.double() @ weight.T + bias.double() + out.double()
    sums, flags = torch.zeros(blocks, 128, tile.rows), torch.zeros(blocks, dtype=torch.int32)
    tiles, pieces = w.pieces.shape[:2]
    code = go(
        blocks, at(x), ctypes.c_longlong(x.stride(0)), at(w.pieces), at(bias), at(out), at(out), at(sums), at(flags), m,
        rows, pieces, tiles, tiles * -(-m // tile.rows) * pieces,
    )  # fmt: skip
    assert code == 0 and not flags.any()
    # Weights are rounded to the type of the inputs.
    assert far(out, wanted) < (4e-3 if dtype == torch.bfloat16 else 5e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "m"), [(s, m) for s in (32, 64, 128, 256) for m in (1, 8, 9, 33, 100, 256, 300)])
def test_products_on_a_device(size: int, m: int, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    assert fragments.works(dtype, min(size, 128)), caplog.text
    given = drawn(1056, 2048, size)
    w, weight = fragments.laid_out(*(t.cuda() for t in given), size), wide(*given, size)
    x, bias = some(m, 2048).to(dtype), some(1056).to(dtype)
    wanted = x.double() @ weight.T + bias.double()
    bound = 6e-3 if dtype == torch.bfloat16 else 1e-3
    assert far(fragments.multiply(x.cuda(), w, bias.cuda()), wanted) < bound
    gated = ACTS["silu"](wanted[:, :528]) * wanted[:, 528:]
    other = some(m, 528).to(dtype)
    got = fragments.multiply(x.cuda(), w, bias.cuda(), other.cuda(), "silu")
    assert far(got, gated + other.double()) < bound
