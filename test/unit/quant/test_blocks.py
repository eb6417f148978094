"""GGUF's blocks, byte by byte: as their formats say, and as the `gguf` package reads them where it is installed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sglang.quant.blocks import BLOCKS

UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
HALVES = {  # bytes where a block has float16 numbers
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}


def half(block: bytes, at: int) -> float:
    return float(np.frombuffer(block[at : at + 2], np.float16)[0])


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def nibble(block: bytes, start: int, i: int, run: int) -> int:
    """Of column i: runs of 2 * `run` columns lie in `run` bytes, the first half in the low nibbles."""
    byte = block[start + i // (2 * run) * run + i % run]
    return byte >> 4 if i % (2 * run) >= run else byte & 15


def fifth(block: bytes, start: int, i: int) -> int:
    return (block[start + i // 8] >> (i % 8) & 1) << 4


def six(block: bytes, at: int, group: int) -> tuple[int, int]:
    """Scale and least value of one of 8 groups in 12 bytes."""
    b = block[at : at + 12]
    if group < 4:
        return b[group] & 63, b[group + 4] & 63
    return (b[group + 4] & 15) | (b[group - 4] >> 6) << 4, (b[group + 4] >> 4) | (b[group] >> 6) << 4


def q4_k(b: bytes, i: int) -> float:
    scale, least = six(b, 4, i // 32)
    return half(b, 0) * scale * nibble(b, 16, i, 32) - half(b, 2) * least


def q5_k(b: bytes, i: int) -> float:
    scale, least = six(b, 4, i // 32)
    code = nibble(b, 48, i, 32) | (b[16 + i % 32] >> (i // 32) & 1) << 4
    return half(b, 0) * scale * code - half(b, 2) * least


def q6_k(b: bytes, i: int) -> float:
    part, at = i % 128 // 32, i // 128
    low = b[64 * at + 32 * (part % 2) + i % 32] >> (4 * (part // 2)) & 15
    high = b[128 + 32 * at + i % 32] >> (2 * part) & 3
    return half(b, 208) * signed(b[192 + i // 16]) * ((low | high << 4) - 32)


def quarter(b: bytes, start: int, i: int) -> int:
    return b[start + i // 128 * 32 + i % 32] >> (2 * (i % 128 // 32)) & 3


def q2_k(b: bytes, i: int) -> float:
    scale = b[i // 16]
    return half(b, 80) * (scale & 15) * quarter(b, 16, i) - half(b, 82) * (scale >> 4)


def q3_k(b: bytes, i: int) -> float:
    group = i // 16
    low = b[96 + group % 8] >> (4 * (group // 8)) & 15
    high = b[104 + group % 4] >> (2 * (group // 4)) & 3
    code = quarter(b, 32, i) - (0 if b[i % 32] >> (i // 32) & 1 else 4)
    return half(b, 108) * ((low | high << 4) - 32) * code


def iq4_xs(b: bytes, i: int) -> float:
    group = i // 32
    low = b[4 + group // 2] >> (4 * (group % 2)) & 15
    high = int.from_bytes(b[2:4], "little") >> (2 * group) & 3
    return half(b, 0) * ((low | high << 4) - 32) * UNEVEN[nibble(b, 8, i, 16)]


def mxfp4(b: bytes, i: int) -> float:
    code = nibble(b, 1, i, 16)
    return 2.0 ** (b[0] - 127) * E2M1[code & 7] * (-1 if code & 8 else 1)


VALUES: dict[str, Callable[[bytes, int], float]] = {
    "Q4_0": lambda b, i: half(b, 0) * (nibble(b, 2, i, 16) - 8),
    "Q4_1": lambda b, i: half(b, 0) * nibble(b, 4, i, 16) + half(b, 2),
    "Q5_0": lambda b, i: half(b, 0) * ((nibble(b, 6, i, 16) | fifth(b, 2, i)) - 16),
    "Q5_1": lambda b, i: half(b, 0) * (nibble(b, 8, i, 16) | fifth(b, 4, i)) + half(b, 2),
    "Q8_0": lambda b, i: half(b, 0) * signed(b[2 + i]),
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": lambda b, i: half(b, 0) * UNEVEN[nibble(b, 2, i, 16)],
    "IQ4_XS": iq4_xs,
    "MXFP4": mxfp4,
}


def blocks(kind: str, rows: int = 3, count: int = 2) -> np.ndarray:
    """uint8 [rows, count, bytes]: any bytes are a block, if its scales are numbers."""
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 256, (rows, count, BLOCKS[kind].bytes), np.uint8)
    for at in HALVES[kind]:
        scales = rng.uniform(0.001, 0.1, (rows, count)).astype(np.float16)
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(110, 130, (rows, count), np.uint8)
    return raw


def read(kind: str, raw: np.ndarray) -> torch.Tensor:
    return BLOCKS[kind].read(torch.from_numpy(raw)).dense()


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_is_what_its_bytes_say(kind: str) -> None:
    raw = blocks(kind)
    wanted = [[VALUES[kind](block.tobytes(), i) for block in row for i in range(BLOCKS[kind].columns)] for row in raw]
    torch.testing.assert_close(read(kind, raw), torch.tensor(wanted), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_is_what_the_gguf_package_reads(kind: str) -> None:
    package = pytest.importorskip("gguf", reason="it is the reference here")
    raw = blocks(kind)
    wanted = package.quants.dequantize(raw.reshape(len(raw), -1), package.GGMLQuantizationType[kind])
    torch.testing.assert_close(read(kind, raw), torch.from_numpy(wanted.copy()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"])
def test_equal_values_without_a_step_keep_what_they_are(kind: str) -> None:
    raw = blocks(kind)
    at = HALVES[kind][0]
    raw[..., at : at + 2] = 0
    wanted = [[VALUES[kind](block.tobytes(), i) for block in row for i in range(BLOCKS[kind].columns)] for row in raw]
    torch.testing.assert_close(read(kind, raw), torch.tensor(wanted), rtol=1e-4, atol=1e-6)
