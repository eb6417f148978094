# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""What experts are to their kernels: stacked weights, what stands between two products, what is added at the end."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sglang.kernels import fp8
from sglang.kernels.packed import Packed
from sglang.kernels.pointwise import ACTS, act_of

LIMITED = 3  # beside ACTS: GPT-OSS's gate


class Stack(NamedTuple):
    """Weights of all experts. weight: [experts, rows, inputs], or in 4 bits; bias: [experts, rows].

    scales: of float8 weights, float32 [experts, groups, rows], a group being all columns or 128.
    """

    weight: Tensor | Packed
    bias: Tensor | None = None
    scales: Tensor | None = None

    @property
    def groups(self) -> int:
        """Scales of a row; 0: none."""
        return 0 if self.scales is None else self.scales.shape[1]


class Gate(NamedTuple):
    """What stands between gate and up: act(gate) * up, or with a limit, GPT-OSS's."""

    act: str
    limit: float | None = None

    @property
    def number(self) -> int:
        return ACTS[self.act] if self.limit is None else LIMITED


class Tail(NamedTuple):
    """What else is added to the sum: shared, times a gate a token, and other, which is overwritten and returned."""

    shared: Tensor | None = None  # [tokens, hidden]
    gates: Tensor | None = None  # float32 [tokens]
    other: Tensor | None = None  # [tokens, hidden]

    def given(self, some: Tensor, numbers: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three as a kernel takes them: anything where there is none."""
        shared = some if self.shared is None else self.shared
        return shared, numbers if self.gates is None else self.gates, out


@triton.jit
def opened(gate, up, limit, ACT: tl.constexpr):
    if ACT == 3:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        return gate * tl.sigmoid(1.702 * gate) * (up + 1)
    else:
        return act_of(gate, ACT) * up


def rounded(x: Tensor, stack: Stack) -> tuple[Tensor, Tensor]:
    """What multiplies the weight, and its scales; anything where there are none."""
    return (x, x) if stack.scales is None else fp8.rounded(x, None, stack.groups)
