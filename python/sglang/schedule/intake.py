"""Messages -> changed state: new sequences, extended ones, and those nobody wants any more."""

from array import array

from sglang.base.messages import AT_END, Abort, Extend, Finish, Piece, Resume, Submit
from sglang.grammar.rules import Cursor
from sglang.schedule.constrain import look_ahead
from sglang.schedule.state import Seq, State, Status


def apply(
    state: State, message: Submit | Extend | Resume | Abort, now: float, cursor: Cursor | None = None
) -> list[Piece]:
    """File one message. cursor: at the beginning of the constraint that its sampling parameters name.

    Returns the refusal where there is one, or the text that the constraint begins with.
    """
    match message:
        case Submit():
            return _submit(state, message, now, cursor)
        case Extend():
            return _extend(state, message, now, cursor)
        case Resume():
            seq = state.seqs.get(message.id)
            if seq is not None and seq.paused:
                seq.paused = False
                state.rewind(seq, len(seq.tokens) - 1)
                _go_on(state, seq, now)
            return []
        case Abort():
            seq = state.seqs.get(message.id)
            if seq is not None:
                state.count.aborted += 1
                state.remove(seq)
            return []


def end(state: State, seq: Seq, finish: Finish, now: float) -> list[Piece]:
    """The generation of `seq` is over: it goes on as it was told ahead, is held, or forgotten."""
    state.conclude(seq, finish)
    after, seq.after = seq.after, None
    if after is None or seq.status is Status.ENDED:
        return []
    return _extend(state, after, now, None)


def flush(state: State) -> bool:
    """Empty the prefix cache; False where sequences are running, held or waiting."""
    if not state.idle or state.seqs:
        return False
    state.free.extend(state.tree.clear())
    return True


def _refuse(id: int, message: str, status: int) -> list[Piece]:
    return [Piece(id, [], Finish("abort", message=message, status=status))]


def _too_long(state: State, length: int) -> str | None:
    """Why a sequence of `length` known tokens can never run."""
    b = state.budget
    if length >= b.context_length:
        context = b.context_length - b.embeds  # a text of which a vector is made may fill it
        return f"The input ({length} tokens) is longer than the model's context length ({context} tokens)."
    if length > b.tokens:
        return f"The input ({length} tokens) is longer than the KV pool ({b.tokens} tokens)."
    return None


def _submit(state: State, m: Submit, now: float, cursor: Cursor | None) -> list[Piece]:
    tokens = m.tokens
    if (reason := _too_long(state, len(tokens))) is not None:
        return _refuse(m.id, reason, 400)
    if len(state.waiting) >= state.budget.max_queued:
        return _refuse(m.id, f"the queue is full ({state.budget.max_queued} requests are waiting)", 503)
    seq = Seq(m.id, m.namespace, m.place, now)
    seq.tokens = tokens
    seq.begin(m.sampling, m.logprobs, m.hold, state.budget)
    state.seqs[m.id] = seq
    state.waiting.append(seq)
    return _constrain(state, seq, cursor, now)


def _constrain(state: State, seq: Seq, cursor: Cursor | None, now: float) -> list[Piece]:
    """`seq` has just begun a generation."""
    seq.cursor, seq.mask = cursor, None
    state.unfollow(seq)
    if cursor is None or seq.last == seq.first:
        return []
    piece = Piece(seq.id, [])
    if cursor.finished and seq.scored:
        piece.finish = Finish("stop")  # the constraint is the empty text
    else:
        look_ahead(state, seq, piece)
    if piece.finish is not None:
        return [piece, *end(state, seq, piece.finish, now)]
    return [piece] if piece.tokens else []


def _extend(state: State, m: Extend, now: float, cursor: Cursor | None) -> list[Piece]:
    seq = state.seqs.get(m.of) or state.seqs.get(m.ahead)
    if seq is None:
        return []  # ended meanwhile: refused, or aborted
    over = seq.status in (Status.HELD, Status.PARKED)
    if m.keep == AT_END and (not over or seq.paused):
        seq.after = m
        return []
    state.rename(seq, m.id)
    keep = seq.kept if m.keep == AT_END else min(m.keep, len(seq.tokens))
    if (reason := _too_long(state, keep + len(m.tokens))) is not None:
        if m.keep != AT_END:  # who sent it ahead may think better of it
            state.remove(seq)
        return _refuse(m.id, reason, 400)
    _keep(state, seq, keep, m)
    seq.tokens[keep:] = array("i", m.tokens)
    seq.begin(m.sampling, m.logprobs, m.hold, state.budget)
    if over:
        _go_on(state, seq, now)
    seq.seated = False  # the sampler must hear of the new parameters
    return _constrain(state, seq, cursor, now)


def _go_on(state: State, seq: Seq, now: float) -> None:
    """A sequence that was held runs again, or waits to."""
    state.held.pop(seq.id, None)
    seq.since = now
    if seq.slot >= 0:
        seq.status = Status.RUNNING
        state.running.append(seq)
    else:
        seq.status = Status.WAITING
        state.waiting.append(seq)


def _keep(state: State, seq: Seq, keep: int, m: Extend) -> None:
    """Forget what was computed beyond `keep`, or beyond what must be computed again to be scored."""
    if seq.slot >= 0:
        state.share(seq, min(seq.computed, len(seq.tokens)))  # the dropped tail may be wanted again: another fork
    valid = min(keep, keep + len(m.tokens) - 1)
    if m.logprobs is not None and m.logprobs.start >= 0:
        valid = min(valid, max(m.logprobs.start, 1) - 1)
    state.rewind(seq, valid)
