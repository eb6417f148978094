"""What experts do with their tokens: gate and up with what stands between them and down, and the sum of a token's.

Two ways: few tokens pair by pair (`experts_pairs`), others in blocks of an expert's (`experts_blocks`). Either way a
pair's numbers depend on no other pair, and are added in the order of the token's choice: no atomics.
"""

from torch import Tensor

from sglang.kernels import routing
from sglang.kernels.experts_blocks import grouped, summed
from sglang.kernels.experts_pairs import pair_by_pair
from sglang.kernels.experts_stack import Gate, Stack, Tail, rounded
from sglang.kernels.experts_tiles import Tile, tiles_of

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
    if len(x) <= few and max(opens.groups, closes.groups) <= 1:
        return pair_by_pair(x, weights, ids, opens, closes, gate, weigh_inputs, first, tail)
    count, top_k = opens.weight.shape[0], ids.shape[1]
    hidden, inter = closes.weight.shape[1:]
    one, two = tiles or tiles_of(ids.numel(), count, (opens, closes))
    given = routing.sort(ids, count, one.block_m, first)
    codes, x_scales = rounded(x, opens)
    inner = x.new_empty(ids.numel(), inter)
    grouped(codes, x_scales, opens, given, weights, inner, gate, top_k, True, weigh_inputs, one)
    if two.block_m != one.block_m:
        given = routing.sort(ids, count, two.block_m, first)
    codes, x_scales = rounded(inner, closes)
    parts = x.new_empty(ids.numel(), hidden)
    grouped(codes, x_scales, closes, given, weights, parts, gate, top_k, False, False, two)
    return summed(parts, ids, weights, tail, first, count, not weigh_inputs)
