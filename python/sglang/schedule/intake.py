"""Messages -> changed state: new sequences, extended ones, and those nobody wants any more."""

from sglang.base.messages import Abort, Extend, Finish, Piece, Submit
from sglang.schedule.state import Seq, State, Status


def apply(state: State, message: Submit | Extend | Abort, now: float) -> list[Piece]:
    """File one message. Returns the refusal where there is one."""
    match message:
        case Submit():
            return _submit(state, message, now)
        case Extend():
            return _extend(state, message, now)
        case Abort():
            seq = state.seqs.get(message.id)
            if seq is not None:
                state.count.aborted += 1
                remove(state, seq)
            return []


def flush(state: State) -> bool:
    """Empty the prefix cache; False where sequences are running, held or waiting."""
    if not state.idle or state.seqs:
        return False
    state.free += state.tree.clear()
    return True


def remove(state: State, seq: Seq) -> None:
    """Forget a sequence; what it computed stays cached."""
    match seq.status:
        case Status.WAITING:
            state.waiting.remove(seq)
        case Status.RUNNING:
            state.running.remove(seq)
        case Status.HELD:
            del state.held[seq.id]
        case _:
            pass
    state.let_go(seq)
    seq.status = Status.ENDED
    del state.seqs[seq.id]


def _refuse(id: int, message: str, status: int) -> list[Piece]:
    return [Piece(id, [], Finish("abort", message=message, status=status))]


def _too_long(state: State, length: int) -> str | None:
    """Why a sequence of `length` known tokens can never run."""
    b = state.budget
    if length >= b.context_length:
        return f"The input ({length} tokens) is longer than the model's context length ({b.context_length} tokens)."
    if length > b.tokens:
        return f"The input ({length} tokens) is longer than the KV pool ({b.tokens} tokens)."
    return None


def _submit(state: State, m: Submit, now: float) -> list[Piece]:
    if (reason := _too_long(state, len(m.tokens))) is not None:
        return _refuse(m.id, reason, 400)
    if len(state.waiting) >= state.budget.max_queued:
        return _refuse(m.id, f"the queue is full ({state.budget.max_queued} requests are waiting)", 503)
    state.arrivals += 1
    seq = Seq(m.id, m.namespace, state.arrivals, now)
    seq.tokens = list(m.tokens)
    seq.begin(m.sampling, m.logprobs, m.hold, state.budget)
    state.seqs[m.id] = seq
    state.waiting.append(seq)
    return []


def _extend(state: State, m: Extend, now: float) -> list[Piece]:
    seq = state.seqs.get(m.id)
    if seq is None:
        return []  # ended meanwhile: refused, or aborted
    keep = min(m.keep, len(seq.tokens))
    if (reason := _too_long(state, keep + len(m.tokens))) is not None:
        remove(state, seq)
        return _refuse(m.id, reason, 400)
    _keep(state, seq, keep, m)
    seq.tokens[keep:] = m.tokens
    seq.begin(m.sampling, m.logprobs, m.hold, state.budget)
    if seq.status in (Status.HELD, Status.PARKED):
        state.held.pop(seq.id, None)
        seq.since = now
        if seq.slot >= 0:
            seq.status = Status.RUNNING
            state.running.append(seq)
        else:
            seq.status = Status.WAITING
            state.waiting.append(seq)
    seq.seated = False  # the sampler must hear of the new parameters
    return []


def _keep(state: State, seq: Seq, keep: int, m: Extend) -> None:
    """Forget what was computed beyond `keep`, or beyond what must be computed again to be scored."""
    seq.epoch += 1  # what is flying was drawn for the old continuation
    seq.flying = 0
    if seq.slot < 0:
        return
    valid = min(seq.computed, keep, keep + len(m.tokens) - 1)
    if m.logprobs is not None and m.logprobs.start >= 0:
        valid = min(valid, max(m.logprobs.start, 1) - 1)
    state.share(seq, min(seq.computed, len(seq.tokens)))  # the dropped tail may be wanted again: another fork
    size = state.budget.page_size
    pages = -(-valid // size)
    if pages <= seq.shared and valid % size:  # the last page is the tree's: nothing may be written into it
        pages = valid // size
        valid = pages * size
    state.free += seq.pages[max(pages, seq.shared) :]
    del seq.pages[pages:]
    if pages < seq.shared:
        assert seq.node is not None
        node, _ = state.tree.match(seq.namespace, seq.array(pages * size))
        state.tree.hold(node)
        state.tree.release(seq.node)
        seq.node = node
        seq.shared = pages
    seq.tabled = min(seq.tabled, pages)
    seq.computed = valid
