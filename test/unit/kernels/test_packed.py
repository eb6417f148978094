"""Weights in 4 bits as they are laid out: what went in is what they stand for."""

import pytest
import torch

from sglang.kernels.packed import FP4, MOST, Packed, each_of, fits, packed_bytes

CPU = torch.device("cpu")


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("inputs", "size"),
    [(256, 32), (160, 32), (192, 64), (256, 128), (288, 288), (512, 256), (300, 128), (8, 8)],
    ids=str,
)
def test_codes_with_scales_and_zeros(inputs: int, size: int) -> None:
    generator, groups = random(inputs), -(-inputs // size)
    codes = torch.randint(0, 16, (10, inputs), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 65, (10, groups), generator=generator).float()
    scales = torch.rand(10, groups, generator=generator) + 0.1
    assert fits(size, groups)
    packed = Packed.empty(3, 12, inputs, "int4", each_of("int4", size, groups), CPU)
    packed.put_codes(1, slice(1, 11), codes, scales, zeros, size)
    group_of = torch.arange(inputs) // size
    wanted = (codes.double() - zeros[:, group_of]) * scales.double()[:, group_of]
    assert packed.shape == (3, 12, inputs) and packed.bytes == 3 * packed_bytes(12, inputs, packed.each)
    # Scales keep 15 bits of their mantissa.
    assert torch.allclose(packed.dense(1)[1:11].double(), wanted, rtol=2.0**-15)


@pytest.mark.parametrize("inputs", [32, 128, 160, 2880])
def test_blocks_of_fp4(inputs: int) -> None:
    generator = random(inputs)
    blocks = torch.randint(0, 256, (6, inputs // 32, 16), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(0, MOST + 1, (6, inputs // 32), generator=generator, dtype=torch.uint8)
    packed = Packed.empty(2, 9, inputs, "mxfp4", each_of("mxfp4", 32, inputs // 32), CPU)
    packed.put_blocks(1, slice(3, 9), blocks, exponents)
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(2).long()
    wanted = (torch.tensor(FP4)[codes] * torch.exp2(exponents.float() - 127)[..., None]).flatten(1)
    assert torch.equal(packed.dense(1)[3:], wanted)
    assert packed.bytes == 2 * packed_bytes(9, inputs, 1)


def test_groups_that_do_not_fit_pieces() -> None:
    assert not fits(96, 3) and not fits(16, 8) and fits(96, 1)


def test_a_quarter_of_16_bits_and_what_scales_take() -> None:
    plain = 2 * 5760 * 2944
    assert packed_bytes(5760, 2944, each_of("mxfp4", 32, 92)) / plain == pytest.approx(4.25 / 16)
    assert packed_bytes(5760, 2944, each_of("int4", 128, 23)) / plain == pytest.approx(4.25 / 16)
    assert packed_bytes(5760, 2944, each_of("int4", 32, 92)) / plain == pytest.approx(5 / 16)
