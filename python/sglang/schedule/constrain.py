"""Sequences under a constraint: what may come next, text that must, and where the constraint ends.

A cursor always stands behind the last known token, so a retracted sequence keeps its own. The mask is made here, right
after the token before it is known: a grammar that fails then fails one sequence, and never a plan. Where the device
follows automata, only grammars need masks: an automaton's rows are planned like free ones, before their last token is
known, and the cursor follows when it is. Text that is forced is then found one step late: what was drawn meanwhile is
forgotten, and the device is told the place behind the text.
"""

from array import array

from sglang.base.messages import Finish, Piece
from sglang.grammar.rules import Cursor, Illegal, Words
from sglang.schedule.state import Seq, State

CONTEXT = 64  # tokens that may matter to how text behind them is tokenised


def advance(state: State, seq: Seq, token: int) -> Finish | None:
    """`token` was drawn and filed."""
    assert seq.cursor is not None
    try:
        seq.cursor.advance(token)
    except Illegal as error:  # no token had a finite logit
        return Finish("abort", message=f"the model gave no probability to any token allowed: {error}", status=500)
    except RuntimeError as error:
        return Finish("abort", message=str(error), status=400, field="constraint")
    if seq.cursor.finished:
        return Finish("stop", token if token in state.budget.eos_ids else None)
    return None


def look_ahead(state: State, seq: Seq, piece: Piece) -> None:
    """Append what is certain, into `piece`, and make the mask of the token to draw after it; or end the generation."""
    cursor = seq.cursor
    assert cursor is not None
    try:
        if state.jump is not None and seq.logprobs is None:
            piece.finish = _jump(state, seq, cursor, piece)
        seq.mask = None
        if piece.finish is None and (state.residents is None or cursor.machine is None):
            seq.mask = mask(state, seq)
    except RuntimeError as error:
        piece.finish = Finish("abort", message=str(error), status=400, field="constraint")


def follow(state: State, seq: Seq, seated: bool) -> None:
    """Have the device follow the constraint of `seq` if it can. seated: it has its seat, and the device was asked."""
    if seq.cursor is None or seq.resident is not None or state.residents is None:
        return
    machine = seq.cursor.machine
    if machine is not None:
        take = state.residents.arrived if seated else state.residents.take
        seq.resident = take(machine, not seq.sampling.ignore_eos)


def mask(state: State, seq: Seq) -> Words:
    """What may be drawn next. Raises RuntimeError for a grammar that fails; an automaton never does."""
    cursor = seq.cursor
    assert cursor is not None
    mask = cursor.mask()
    if not seq.sampling.ignore_eos or not cursor.accepting or cursor.finished:
        return mask
    mask = mask.copy()  # the end is no choice for who ignores it, as long as the text can go on
    for i in state.budget.eos_ids:
        if i // 32 < len(mask):
            mask[i // 32] &= ~(1 << i % 32) & 0xFFFFFFFF
    return mask


def _jump(state: State, seq: Seq, cursor: Cursor, piece: Piece) -> Finish | None:
    forced = cursor.forced()
    if not forced or state.jump is None:
        return None
    beyond = cursor.fork()
    beyond.feed(forced)
    if len(forced) == 1 and not beyond.finished:
        return None  # seldom a token for certain, and found no sooner than drawn
    certain = seq.certain
    before, drawn = seq.tokens[max(0, certain - CONTEXT) : certain].tolist(), seq.tokens[certain:].tolist()
    found = state.jump(before, drawn, forced, beyond)
    if found is None:
        return None
    keep, tokens, text = found
    replaced = len(drawn) - keep
    keep += certain - seq.first
    room = seq.last - seq.first - keep
    if seq.hold and seq.sampling.stops_by_text and replaced > len(piece.tokens):
        return None  # the front may have stopped behind tokens that it was sent, and goes on from there
    stop = next(
        (i for i, t in enumerate(tokens[:room]) if t in seq.stops and keep + i >= seq.sampling.min_new_tokens), None
    )
    finish = None
    if stop is not None or len(tokens) > room:
        if replaced:
            return None  # what is left of the new tokens might say less than the old ones, which were sent
        tokens = tokens[: room if stop is None else stop + 1]
        finish = Finish("length") if stop is None else Finish("stop", tokens[-1])
    else:
        cursor.feed(text)
        finish = Finish("stop") if cursor.finished else Finish("length") if len(tokens) == room else None
    state.rewind(seq, seq.first + keep)
    seq.tokens[seq.first + keep :] = array("i", tokens)
    seq.certain = len(seq.tokens)
    if seq.sampling.penalised:
        seq.seated = False  # the sampler's counts
    piece.jumped = max(0, len(tokens) - replaced)
    state.count.jumped_tokens += piece.jumped
    unsent = len(piece.tokens)
    piece.tokens = piece.tokens[: max(0, unsent - replaced)] + tokens
    piece.replaced = max(0, replaced - unsent)
    return finish
