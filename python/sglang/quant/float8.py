"""Float8: weights in 8-bit floating point, multiplied as such on CUDA devices that can."""

import functools

import torch
from torch import Tensor

from sglang.kernels.staging import triton_works
from sglang.quant.base import Act, Form, Grid, Inputs, Rounded
from sglang.quant.dense import after
from sglang.quant.rounding import FP8, FP8_MAX

MULTIPLE = 16  # sides of a weight that the matrix units take
GROUP = 128  # columns with a scale of their own, in weights with a scale a block


class Float8:
    """codes: float8_e4m3fn [rows, inputs]; scales: [rows, 1], or [rows, groups] of 128 columns.

    Inputs are rounded too, with a scale a token (and group), or the file's. On a CPU the same steps are computed in
    float32: the twin that the product on the device is compared with.
    """

    dtype = torch.bfloat16  # of what the kernels give

    def __init__(self, grid: Grid, device: torch.device):
        self.rows, self.inputs = grid.codes.shape
        self.groups = grid.scales.shape[1]
        self.bytes = grid.codes.numel() + 4 * grid.scales.numel()
        self._codes = grid.codes.to(device).contiguous()
        self._scales = grid.scales.float().t().contiguous().to(device)  # [groups, rows]
        self._input_scale = grid.input_scale if self.groups == 1 else None
        # Asked here, since the answer may take a trial, and products are captured.
        self._ours = device.type == "cuda" and self.inputs % GROUP == 0 and ours_works(self.groups > 1)

    @staticmethod
    def fits(grid: Grid, dtype: torch.dtype) -> bool:
        rows, inputs = grid.codes.shape
        if grid.codes.dtype != FP8 or dtype != torch.bfloat16 or grid.zeros is not None or grid.group_of is not None:
            return False
        if grid.scales.shape[1] > 1:
            return grid.size == GROUP and inputs % GROUP == 0 and ours_works(True)
        return rows % MULTIPLE == 0 and inputs % MULTIPLE == 0 and scaled_products_work()

    @property
    def takes(self) -> Form | None:
        return Form(self.groups, self._input_scale) if self._ours else None

    def __call__(self, x: Inputs, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        if (parts := self.parts(x)) is not None:
            from sglang.kernels.parts import ended

            return ended(parts, bias, other, act, self.dtype)
        assert isinstance(x, Tensor)
        y = self._torch(*rounded_rows(x, self._input_scale)) if x.is_cuda else self._twin(x)
        return after(y, bias, other, act)

    def parts(self, x: Inputs) -> Tensor | None:
        """As in `Parts`, where the kernels are ours."""
        if not self._ours:
            return None
        from sglang.kernels import fp8

        codes, scales = fp8.rounded(x, self._input_scale, self.groups) if isinstance(x, Tensor) else x
        if self.groups > 1 or len(codes) <= fp8.FEW:
            return fp8.partial(codes, scales, self._codes, self._scales, self.dtype)
        return self._torch(codes, scales)[None]

    def gated(self, x: Inputs, bias: Tensor | None, act: Act, form: Form) -> Rounded | None:
        """The gate's product in the form in which the next one takes it, where one kernel is the faster way."""
        if not self._ours:
            return None
        from sglang.kernels.stream import FEW, opened

        rows = len(x) if isinstance(x, Tensor) else len(x.codes)
        if rows <= FEW or (parts := self.parts(x)) is None:
            return None
        return Rounded(*opened(parts, bias, act, self.dtype, form))

    def _torch(self, codes: Tensor, scales: Tensor) -> Tensor:
        return torch.ops.aten._scaled_mm(
            codes, self._codes.t(), scale_a=scales, scale_b=self._scales, out_dtype=self.dtype
        )

    def _twin(self, x: Tensor) -> Tensor:
        size = self.inputs // self.groups
        parts = x.unflatten(1, (self.groups, size)).unbind(1)
        out = torch.zeros(len(x), self.rows)
        for part, weight, scale in zip(parts, self._codes.float().split(size, 1), self._scales, strict=True):
            codes, scales = rounded_rows(part, self._input_scale)
            out += (codes.float() @ weight.t()).mul_(scales).mul_(scale)
        return out.to(x.dtype)


def ours_works(grouped: bool) -> bool:
    if not triton_works():
        return False
    from sglang.kernels import fp8

    return fp8.works(grouped)


def rounded_rows(x: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """x: [tokens, inputs] -> float8 of the same shape, float32 scales [tokens, 1]."""
    x = x.float()
    if scale is None:
        scales = (x.abs().amax(1, keepdim=True) / FP8_MAX).clamp_min(1e-12)
    else:
        scales = x.new_full((len(x), 1), scale)
    return (x / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


@functools.cache
def scaled_products_work() -> bool:
    """Whether the CUDA device multiplies 8-bit floating point with a scale a row."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        return False
    a, b = (torch.ones(32, 32, device="cuda").to(FP8) for _ in range(2))
    one = torch.ones(32, 1, device="cuda")
    try:
        got = torch.ops.aten._scaled_mm(a, b.t(), scale_a=one, scale_b=one.t(), out_dtype=torch.bfloat16)
    except (RuntimeError, TypeError, ValueError):
        return False
    return bool((got == 32).all())
