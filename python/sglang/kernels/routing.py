# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Which experts a token takes, and which tokens an expert has: scores, the best of them, and pairs by expert.

A pair is a token and one of its experts: pair p is token p // top_k. All of it stays on the device, in tensors whose
sizes depend on the number of tokens alone, so that it can be captured.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.matvec import early

# Scores that a kernel of ours computes, which reads the weights once a token; cuBLAS takes three times as long for so
# small a product.
FEW = 64  # tokens
READS = 32 << 20  # bytes


class Rule(Protocol):
    """How experts are chosen: `layers.moe.Routing`, which says what the fields mean."""

    @property
    def count(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def score(self) -> str: ...
    @property
    def norm(self) -> float | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def groups(self) -> int: ...
    @property
    def top_groups(self) -> int: ...
    @property
    def group_by(self) -> int: ...
    @property
    def softcap(self) -> float | None: ...


@triton.jit
def _score(
    x,
    weight,
    bias,
    out,
    rows,
    x_row,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for at in range(0, K, BLOCK_K):
        i = at + k
        w = tl.load(weight + n[:, None] * K + i[None, :], mask=(n < rows)[:, None] & (i < K)[None, :], other=0.0)
        v = tl.load(x + token * x_row + i, mask=i < K, other=0.0)
        acc += w.to(tl.float32) * v.to(tl.float32)[None, :]
    y = tl.sum(acc, 1)
    if BIAS:
        y += tl.load(bias + n, mask=n < rows, other=0.0).to(tl.float32)
    tl.store(out + token * rows + n, y.to(out.dtype.element_ty), mask=n < rows)


def scores(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [tokens, hidden], a row side by side; weight: [n, hidden]. Returns [tokens, n] of the weight's type."""
    tokens, hidden = x.shape
    if tokens > FEW or (tokens > 1 and tokens * weight.numel() * weight.itemsize > READS):
        return F.linear(x.to(weight.dtype), weight, bias)
    rows = weight.shape[0]
    out = torch.empty(tokens, rows, dtype=weight.dtype, device=x.device)
    chained = early(tokens)
    _score[(tokens, triton.cdiv(rows, 2))](
        x, weight, weight if bias is None else bias, out, rows, x.stride(0),
        K=hidden, BIAS=bias is not None, BLOCK_N=2, BLOCK_K=min(1024, triton.next_power_of_2(hidden)), EARLY=chained,
        num_warps=4, launch_pdl=chained,
    )  # fmt: skip
    return out


@triton.jit
def _choose(
    logits,
    correction,
    weights,
    ids,
    gates,
    row,
    cap,
    norm,
    scale,
    COUNT: tl.constexpr,
    TOP_K: tl.constexpr,
    SIGMOID: tl.constexpr,
    CAPPED: tl.constexpr,
    CORRECTED: tl.constexpr,
    NORM: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BY: tl.constexpr,
    GATED: tl.constexpr,
    MORE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A program for a token. NORM: the p of the norm, 1 or 2; 3: `norm` is; 0: none."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < COUNT
    logit = tl.load(logits + token * row + i, mask=there, other=-float("inf")).to(tl.float32)
    if CAPPED:
        logit = tl.where(there, cap * (2 * tl.sigmoid(2 * logit / cap) - 1), -float("inf"))  # tanh
    top = tl.max(logit, 0)
    total = tl.sum(tl.exp(logit - top), 0)
    score = tl.sigmoid(logit) if SIGMOID else tl.exp(logit - top) / total
    choice = score
    if CORRECTED:
        choice += tl.load(correction + i, mask=there, other=0.0)
    choice = tl.where(there, choice, -float("inf"))
    if GROUPS > 1:
        # Side by side, a group a row: read again, as Triton 3.6 and 3.9 mix up what is reshaped between two reductions.
        SIZE: tl.constexpr = COUNT // GROUPS
        g = tl.arange(0, BLOCK_G)
        s = tl.arange(0, BLOCK_S)
        expert = g[:, None] * SIZE + s[None, :]
        in_group = (g < GROUPS)[:, None] & (s < SIZE)[None, :]
        of_group = tl.load(logits + token * row + expert, mask=in_group, other=-float("inf")).to(tl.float32)
        if CAPPED:
            of_group = cap * (2 * tl.sigmoid(2 * of_group / cap) - 1)
        of_group = tl.sigmoid(of_group) if SIGMOID else tl.exp(of_group - top) / total
        if CORRECTED:
            of_group += tl.load(correction + expert, mask=in_group, other=0.0)
        of_group = tl.where(in_group, of_group, -float("inf"))
        best = tl.max(of_group, 1)
        if GROUP_BY == 2:
            first = tl.argmax(of_group, 1)
            best += tl.max(tl.where(s[None, :] == first[:, None], -float("inf"), of_group), 1)
        kept = tl.zeros((BLOCK_G,), tl.int32)
        for _ in tl.static_range(TOP_GROUPS):
            at = tl.argmax(best, 0)
            kept = tl.where(g == at, 1, kept)
            best = tl.where(g == at, -float("inf"), best)
        mine = tl.sum(tl.where((i // SIZE)[:, None] == g[None, :], kept[None, :], 0), 1)
        choice = tl.where(mine == 1, choice, -float("inf"))
    slot = tl.arange(0, BLOCK_K)
    weight = tl.zeros((BLOCK_K,), tl.float32)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    for j in tl.static_range(TOP_K):
        at = tl.argmax(choice, 0)
        own = tl.sum(tl.where(i == at, score, 0.0), 0)
        weight = tl.where(slot == j, own, weight)
        chosen = tl.where(slot == j, at, chosen)
        choice = tl.where(i == at, -float("inf"), choice)
    if NORM == 1:
        weight /= tl.maximum(tl.sum(weight, 0), 1e-20)
    elif NORM == 2:
        weight /= tl.maximum(tl.sqrt(tl.sum(weight * weight, 0)), 1e-20)
    elif NORM == 3:
        powers = tl.where(weight > 0, tl.exp2(norm * tl.log2(weight)), 0.0)
        weight /= tl.maximum(tl.exp2(tl.log2(tl.sum(powers, 0)) / norm), 1e-20)
    weight *= scale
    # Numbers that are none compare as they like, and must not send anybody to weights that are not there.
    chosen = tl.minimum(chosen, COUNT - 1)
    if GATED or MORE:
        gate = tl.sigmoid(tl.load(logits + token * row + COUNT).to(tl.float32)) if GATED else 1.0
        if MORE:
            chosen = tl.where(slot < TOP_K, chosen, COUNT + slot - TOP_K)
            weight = tl.where(slot < TOP_K, weight, gate)
        else:
            tl.store(gates + token, gate)
    place = token * (TOP_K + MORE) + slot
    tl.store(weights + place, weight, mask=slot < TOP_K + MORE)
    tl.store(ids + place, chosen, mask=slot < TOP_K + MORE)


def choose(
    rule: Rule, logits: Tensor, correction: Tensor | None = None, gated: bool = False, more: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `layers.moe.route` says. logits: [tokens, experts], side by side; correction: [experts], float32.

    Returns weights (float32) and ids (int32), [tokens, top_k]. gated: one more column holds a gate's logit; its
    sigmoid is the third result, float32 [tokens]. more: every token takes as many experts besides, behind the others,
    with that gate, or 1, as their weight; then there is no third result.
    """
    tokens, width = logits.shape[0], rule.top_k + more
    weights = torch.empty(tokens, width, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, width, dtype=torch.int32, device=logits.device)
    gates = weights.new_empty(tokens) if gated and not more else None
    chained = early(tokens)
    norm = 0 if rule.norm is None else int(rule.norm) if rule.norm in (1, 2) else 3
    _choose[(tokens,)](
        logits, logits if correction is None else correction, weights, ids, weights if gates is None else gates,
        logits.stride(0), rule.softcap or 1.0, float(rule.norm or 1.0), float(rule.scale),
        COUNT=rule.count, TOP_K=rule.top_k, SIGMOID=rule.score == "sigmoid", CAPPED=rule.softcap is not None,
        CORRECTED=correction is not None, NORM=norm, GROUPS=rule.groups, TOP_GROUPS=rule.top_groups,
        GROUP_BY=rule.group_by, GATED=gated, MORE=more, BLOCK=triton.next_power_of_2(rule.count),
        BLOCK_G=triton.next_power_of_2(rule.groups), BLOCK_S=triton.next_power_of_2(rule.count // rule.groups),
        BLOCK_K=triton.next_power_of_2(width), EARLY=chained, num_warps=1, launch_pdl=chained,
    )  # fmt: skip
    return weights, ids, gates


class Sorted(NamedTuple):
    """Pairs by expert, cut into blocks of `tall` pairs of one expert, the last of each with fewer.

    order: int32 [pairs]. blocks: int32 [3 most + 1]: experts of blocks, where in `order` they begin, where those of
    their expert end, and last how many there are: at most `most`, which is known without asking the device.
    """

    order: Tensor
    blocks: Tensor
    most: int
    tall: int


@triton.jit(do_not_specialize=["pairs", "most", "tall", "first", "count"])
def _sort(ids, order, blocks, pairs, most, tall, first, count, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """A program for an expert: it counts everybody's pairs, since it must know where its own begin."""
    e = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    b = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for at in range(0, pairs, BLOCK):
        own = tl.load(ids + at + i, mask=at + i < pairs, other=-1) - first
        counts += tl.histogram(tl.where((own >= 0) & (own < count) & (at + i < pairs), own, count), BINS)
    begin = tl.sum(tl.where(b < e, counts, 0), 0)
    end = begin + tl.sum(tl.where(b == e, counts, 0), 0)
    block = tl.sum(tl.where(b < e, (counts + tall - 1) // tall, 0), 0)
    for at in range(begin, end, tall):
        tl.store(blocks + block, e)
        tl.store(blocks + most + block, at)
        tl.store(blocks + 2 * most + block, end)
        block += 1
    if e == count - 1:
        tl.store(blocks + 3 * most, block)
    for at in range(0, pairs, BLOCK):
        own = tl.load(ids + at + i, mask=at + i < pairs, other=-1)
        mine = (own == e + first) & (at + i < pairs)
        rank = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(order + begin + rank - 1, at + i, mask=mine)
        begin += tl.sum(mine.to(tl.int32), 0)


def sort(ids: Tensor, count: int, tall: int, first: int = 0) -> Sorted:
    """ids: [tokens, top_k] of `choose`. count, first: of the experts that are here; pairs of others are left out."""
    pairs = ids.numel()
    most = min(pairs, pairs // tall + count)
    order = torch.empty(pairs, dtype=torch.int32, device=ids.device)
    blocks = torch.empty(3 * most + 1, dtype=torch.int32, device=ids.device)
    size = 128 if pairs <= 128 else 1024 if pairs <= 1024 else 4096
    _sort[(count,)](
        ids, order, blocks, pairs, most, tall, first, count,
        BLOCK=size, BINS=max(triton.next_power_of_2(count + 1), 32), num_warps=4 if size <= 1024 else 8,
    )  # fmt: skip
    return Sorted(order, blocks, most, tall)
