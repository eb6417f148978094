"""Mixture of experts: which experts a token takes (`route`), and what they do with it (`ExpertMlp`).

The two are apart so that ranks which hold some of the experts can route all tokens alike and compute their own. On CUDA
devices kernels of ours do both (`kernels.routing`, `kernels.experts`), without a word between host and device; what is
written here in torch is how a CPU does it, and what the kernels are compared with.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.kernels.staging import triton_works
from sglang.layers.linear import Act, Linear
from sglang.layers.mlp import Mlp
from sglang.quant.dense import ACTS, Dense, packing_works
from sglang.quant.stacked import Stacked

GROUPED = (torch.bfloat16,)  # types that torch multiplies group by group on CUDA devices, where our kernels do not work


@dataclass(frozen=True)
class Routing:
    """How experts are chosen and weighed.

    norm: p of the p-norm that the chosen weights are divided by; None: they stay. scale: of the weights, after that.
    groups: the experts' number is cut into as many; a token takes from the `top_groups` best, by their best expert or,
    group_by 2, by the sum of their two best. correction: a bias that counts where experts are chosen, not in weights.
    softcap: of the logits. weigh_inputs: the weight multiplies what an expert reads, not what it gives.
    """

    count: int
    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    norm: float | None = 1.0
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_by: Literal[1, 2] = 1
    correction: bool = False
    softcap: float | None = None
    bias: bool = False
    weigh_inputs: bool = False


def route(r: Routing, logits: Tensor, correction: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """logits: [tokens, experts]; correction: [experts]. Returns weights (float32) and ids (int64), [tokens, top_k]."""
    logits = logits.float()
    if r.softcap is not None:
        logits = r.softcap * (logits / r.softcap).tanh()
    scores = logits.softmax(-1) if r.score == "softmax" else logits.sigmoid()
    choice = scores if correction is None else scores + correction
    if r.groups > 1:
        grouped = choice.view(len(choice), r.groups, -1)
        best = grouped.topk(r.group_by, -1).values.sum(-1).topk(r.top_groups, -1).indices  # [tokens, top_groups]
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, True)
        choice = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    ids = choice.topk(r.top_k, -1).indices
    weights = scores.gather(1, ids)
    if r.norm is not None:
        weights = weights / torch.linalg.vector_norm(weights, r.norm, -1, keepdim=True).clamp_min(1e-20)
    return (weights if r.scale == 1 else weights * r.scale), ids


class ExpertMlp:
    """The experts' weights, stacked: gate_up [experts, 2 inter, hidden], down [experts, hidden, inter].

    On a CPU `finish` replaces them by maps of their own for each expert, in the layout that multiplies fastest.
    """

    def __init__(
        self,
        count: int,
        hidden: int,
        inter: int,
        act: Act,
        bias: bool,
        limit: float | None,
        device: torch.device,
        dtype: torch.dtype,
        more: int = 0,
    ):
        """more: experts that nobody chooses, behind the others: see `MoE`."""
        self.gate_up = Stacked(count, {"gate": inter, "up": inter}, hidden, bias, device, dtype, more)
        self.down = Stacked(count, {"down": hidden}, inter, bias, device, dtype, more)
        self._device, self._dtype = device, dtype
        self._act: Act = act
        self._limit = limit
        self._count = count
        self._inter = inter
        self._maps: list[tuple[Linear, Linear]] = []
        self.fused = False  # our kernels compute it

    def places(self, prefix: str) -> dict[str, Tensor]:
        return self.gate_up.places(prefix) | self.down.places(prefix)

    def finish(self) -> None:
        """All places are filled; they go out of use."""
        device, dtype = self._device, self._dtype
        if device.type == "cuda":
            self.fused = fused_works(dtype)
        for one in (self.gate_up, self.down):
            if not (self.fused and stays_works(one)):
                one.widen()
        if device.type != "cpu" or not packing_works(dtype):
            return
        hidden, bias, n = self.gate_up.inputs, self.down.bias is not None, self._inter
        places = self.places("")
        for e in range(self._count):
            gated = self._limit is None
            gate_up = Linear(
                hidden, {"gate": n, "up": n}, split="out", bias=bias, gated=gated, device=device, dtype=dtype
            )
            down = Linear(n, {"down": hidden}, split="in", bias=bias, device=device, dtype=dtype)
            for linear in (gate_up, down):
                for place, tensor in linear.places(f".{e}").items():
                    tensor.copy_(places[place])
                linear.finish()
            self._maps.append((gate_up, down))
        for one in (self.gate_up, self.down):
            one.weight, one.bias = torch.empty(0), None

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor, weigh_inputs: bool = False) -> Tensor:
        """x: [tokens, hidden]; weights, ids: [tokens, top_k] of `route`. Returns [tokens, hidden].

        Tokens are sorted by expert, so that each expert multiplies all its rows at once; a token's parts are then
        summed in the order of its choice, whoever else is in the step.
        """
        if self.fused:
            return self.sums(x, weights, ids.int(), weigh_inputs)
        top_k = ids.shape[1]
        flat = ids.flatten()
        order = flat.argsort(stable=True)
        rows = x[order // top_k]
        if weigh_inputs:
            rows = rows * weights.flatten()[order, None].to(x.dtype)
        counts = flat.new_zeros(self._count).scatter_add_(0, flat, torch.ones_like(flat))
        together = x.is_cuda and x.dtype in GROUPED
        parts = self._grouped(rows, counts) if together else self._loop(rows, counts)
        own = torch.empty_like(parts)
        own[order] = parts
        own = own.view(*ids.shape, -1)
        if weigh_inputs:
            return own.sum(1)
        return torch.einsum("tkh,tk->th", own.float(), weights).to(x.dtype)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA device needs no word from the host; once it is finished."""
        return self.fused or self._dtype in GROUPED

    def sums(
        self,
        x: Tensor,
        weights: Tensor,
        ids: Tensor,
        weigh_inputs: bool,
        shared: Tensor | None = None,
        gates: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """The same by our kernels, + shared (times gates, float32 [tokens]) + other, which is overwritten.

        ids: int32; those from the count of experts on are of the `more`. All others: as in `__call__`, side by side.
        """
        from sglang.kernels import experts as kernels

        opens, closes = (
            kernels.Stack(one.packed or (one.weight if one.codes is None else one.codes), one.bias, one.scales)
            for one in (self.gate_up, self.down)
        )
        tail = kernels.Tail(shared, gates, other)
        gate = kernels.Gate(self._act, self._limit)
        return kernels.forward(x, weights, ids, opens, closes, gate, weigh_inputs=weigh_inputs, tail=tail)

    def _loop(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows: sorted by expert, counts[e] of each."""
        out = torch.empty_like(rows)
        at = 0
        for e, n in enumerate(counts.tolist()):
            if n > 0:
                out[at : at + n] = self._one(e, rows[at : at + n])
                at += n
        return out

    def _one(self, e: int, x: Tensor) -> Tensor:
        if self._maps:
            gate_up, down = self._maps[e]
            return down(gate_up.gate(x, self._act) if self._limit is None else self._opened(gate_up(x)))
        opens, closes = self.gate_up, self.down
        both = F.linear(x, opens.weight[e], None if opens.bias is None else opens.bias[e])
        return F.linear(self._opened(both), closes.weight[e], None if closes.bias is None else closes.bias[e])

    def _grouped(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Without a word between host and device, so that it can be captured."""
        ends = counts.cumsum(0, dtype=torch.int32)
        which = torch.searchsorted(ends, torch.arange(len(rows), device=rows.device), right=True)
        both = F.grouped_mm(rows, self.gate_up.weight.transpose(1, 2), offs=ends)
        if self.gate_up.bias is not None:
            both = both + self.gate_up.bias[which]
        out = F.grouped_mm(self._opened(both), self.down.weight.transpose(1, 2), offs=ends)
        return out if self.down.bias is None else out + self.down.bias[which]

    def _opened(self, both: Tensor) -> Tensor:
        gate, up = both[:, : self._inter], both[:, self._inter :]
        if self._limit is None:
            return ACTS[self._act](gate).mul_(up)
        # GPT-OSS's reference: swish with beta 1.702, which is close to GELU, and a bias of 1 on the other half
        gate, up = gate.clamp(max=self._limit), up.clamp(-self._limit, self._limit)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def fused_works(dtype: torch.dtype) -> bool:
    if not triton_works():
        return False
    from sglang.kernels.experts_trial import works

    return works(dtype)


def stays_works(one: Stacked) -> bool:
    """Whether our kernels multiply the weights as they are kept."""
    if one.codes is not None:
        return fused_works(one.codes.dtype)
    if one.packed is None:
        return True
    from sglang.kernels.experts_trial import packed_works

    return packed_works(one.dtype, one.packed.kind, one.packed.each)


# Rows of a step in which the part that all tokens take is computed as experts that all choose: one pass reads all
# weights then. For more rows its own products are faster.
MERGED_MOST = 64
MERGES = ("cuda",)  # devices where it is


class MoE:
    """Router, experts, and the part all tokens take. Places: router, correction, experts.*, shared.*, shared_gate.

    Where that part is as wide as a number of experts, its weights lie behind theirs, piece by piece.
    """

    def __init__(
        self,
        hidden: int,
        routing: Routing,
        inter: int,
        shared: int,
        shared_gate: bool,
        act: Act,
        bias: bool,
        limit: float | None,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self._routing = routing
        # Where a bias decides between experts of nearly equal score, 8 bits are too few.
        exact = torch.float32 if routing.correction else dtype
        n = routing.count
        # The shared part's gate is one more row: one product computes both. Odd numbers of rows cost cuBLAS a lot.
        rows = -(-(n + shared_gate) // 16) * 16
        self._scores = torch.zeros(rows, hidden, device=device, dtype=exact)
        self._scores_bias = torch.zeros(rows, device=device, dtype=dtype) if routing.bias else None
        self.router, self.shared_gate = self._scores[:n], self._scores[n : n + 1] if shared_gate else None
        self.router_bias = None if self._scores_bias is None else self._scores_bias[:n]
        self.correction = torch.empty(routing.count, device=device, dtype=torch.float32) if routing.correction else None
        alike = device.type in MERGES and shared % inter == 0 and not bias and limit is None
        pieces = shared // inter if alike else 0
        self.experts = ExpertMlp(routing.count, hidden, inter, act, bias, limit, device, dtype, pieces)
        self._pieces = 0  # of the shared part that lie there
        self._act: Act = act
        self.shared = Mlp(hidden, shared, act, True, False, device, dtype) if shared else None

    def places(self, prefix: str) -> dict[str, Tensor]:
        """All but those of `linears`."""
        found = {f"{prefix}.router.weight": self.router}
        if self.router_bias is not None:
            found[f"{prefix}.router.bias"] = self.router_bias
        if self.correction is not None:
            found[f"{prefix}.correction.bias"] = self.correction
        if self.shared_gate is not None:
            found[f"{prefix}.shared_gate.weight"] = self.shared_gate
        return found | self.experts.places(f"{prefix}.experts")

    def finish(self) -> None:
        """All places are filled; those of `linears` are finished by themselves, before."""
        self.experts.finish()
        if self.shared is None or not self.experts.fused:
            return
        opens, closes, count = self.experts.gate_up, self.experts.down, self._routing.count
        own, last = self.shared.gate_up.store, self.shared.down.store
        if opens.more == 0 or opens.narrowed or closes.narrowed:
            return
        if not (isinstance(own, Dense) and isinstance(last, Dense)):
            return
        self._pieces = n = opens.more
        opens.weight[count:].unflatten(1, (2, -1)).copy_(own.weight.unflatten(0, (2, n, -1)).transpose(0, 1))
        closes.weight[count:].copy_(last.weight.unflatten(1, (n, -1)).transpose(0, 1))
        own.weight = last.weight = torch.empty(0)

    def linears(self) -> dict[str, Linear]:
        return {} if self.shared is None else {f"shared.{name}": one for name, one in self.shared.linears().items()}

    @property
    def capturable(self) -> bool:
        return self.experts.capturable

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]."""
        if self.experts.fused:
            return self._fused(x, None)
        logits = F.linear(x.to(self.router.dtype), self.router, self.router_bias)
        weights, ids = route(self._routing, logits, self.correction)
        out = self.experts(x, weights, ids, self._routing.weigh_inputs)
        if self.shared is None:
            return out
        shared = self._shared(x)
        if self.shared_gate is not None:
            shared = shared * F.linear(x.to(self.shared_gate.dtype), self.shared_gate).sigmoid().to(x.dtype)
        return out.add_(shared)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._fused(x, other) if self.experts.fused else self(x).add_(other)

    def _fused(self, x: Tensor, other: Tensor | None) -> Tensor:
        from sglang.kernels import routing

        logits = routing.scores(x, self._scores, self._scores_bias)
        more = self._pieces if len(x) <= MERGED_MOST else 0
        gated = self.shared_gate is not None
        weights, ids, gates = routing.choose(self._routing, logits, self.correction, gated, more)
        shared = None if self.shared is None or more else self._shared(x)
        return self.experts.sums(x, weights, ids, self._routing.weigh_inputs, shared, gates, other)

    def _shared(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        if not self._pieces:
            return self.shared(x)
        from sglang.kernels.pointwise import gate

        count = self._routing.count
        opens, closes = self.experts.gate_up.weight[count:], self.experts.down.weight[count:]
        inner = gate(F.linear(x, opens.flatten(0, 1)).view(len(x) * self._pieces, -1), self._act)
        inner = inner.view(len(x), self._pieces, -1)
        out = F.linear(inner[:, 0], closes[0])
        for i in range(1, self._pieces):
            out = out.addmm_(inner[:, i], closes[i].t())
        return out
