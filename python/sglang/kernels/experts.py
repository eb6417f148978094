"""What experts do with their tokens: gate and up with what stands between them and down, and the sum of a token's.

Two ways: few tokens pair by pair (`experts_pairs`), others in blocks of an expert's (`experts_blocks`); weights of 4
bits have a kernel for both (`experts_packed`). Either way a pair's numbers depend on no other pair, and are added in
the order of the token's choice: no atomics.
"""

from torch import Tensor

from sglang.kernels import routing
from sglang.kernels.experts_blocks import grouped, summed
from sglang.kernels.experts_packed import grouped_packed
from sglang.kernels.experts_pairs import pair_by_pair
from sglang.kernels.experts_stack import Gate, Stack, Tail, rounded
from sglang.kernels.experts_tiles import Tile, alone, tiles_of
from sglang.kernels.packed import Packed

FEW = 1  # tokens whose experts are read pair by pair; several may have one in common


def forward(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    opens: Stack,
    closes: Stack,
    gate: Gate,
    *,
    weigh_inputs: bool = False,
    first: int = 0,
    tail: Tail = Tail(),
    tiles: tuple[Tile, Tile] | None = None,
    few: int = FEW,
) -> Tensor:
    """The sum of a token's experts, with `tail`. x: [tokens, hidden], a row side by side; weights, ids: of `choose`.

    opens: gate over up, closes: down, of experts `first` and on; others add nothing. weigh_inputs: the weight
    multiplies what an expert reads. tiles, few: as measured, unless given.
    """
    count, hidden, inter = closes.weight.shape
    packed = [isinstance(stack.weight, Packed) for stack in (opens, closes)]
    apart = len(x) <= few and max(opens.groups, closes.groups) <= 1
    if apart and not any(packed):
        return pair_by_pair(x, weights, ids, opens, closes, gate, weigh_inputs, first, tail)
    apart = apart and all(packed)
    if tiles is None and apart:
        tiles = alone(ids.numel(), opens, False), alone(ids.numel(), closes, True)
    one, two = tiles or tiles_of(ids.numel(), count, (opens, closes))
    inner, parts = x.new_empty(ids.numel(), inter), x.new_empty(ids.numel(), hidden)
    given = None
    for read, stack, out, tile in ((x, opens, inner, one), (inner, closes, parts, two)):
        if not apart and (given is None or given.tall != tile.block_m):
            given = routing.sort(ids, count, tile.block_m, first)
        gated, weigh = stack is opens, stack is opens and weigh_inputs
        if isinstance(stack.weight, Packed):
            grouped_packed(read, stack, given, ids, weights, out, gate, gated, weigh, first, tile)
        else:
            assert given is not None
            grouped(*rounded(read, stack), stack, given, weights, out, gate, ids.shape[1], gated, weigh, tile)
    return summed(parts, ids, weights, tail, first, count, not weigh_inputs)
