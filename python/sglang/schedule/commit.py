"""After a step: its tokens are filed, sequences end, prompt scores come together, pages return."""

from collections.abc import Sequence

from sglang.base.messages import Finish, Piece, Score
from sglang.base.plan import Plan, Result
from sglang.schedule.constrain import advance, look_ahead
from sglang.schedule.intake import end
from sglang.schedule.state import Does, Seq, State

FILLS, DRAWS = Does.FILLS, Does.DRAWS


def commit(state: State, plan: Plan, result: Result, now: float) -> list[Piece]:
    """File the result of the oldest plan that has not landed. Returns what each sequence gained."""
    rows = state.flights.popleft()
    assert len(rows) == len(plan.slots)
    scores, prompt_scores, count = result.scores, result.prompt_scores, state.count
    pieces: list[Piece] = []
    for row, ((seq, epoch, does), token) in enumerate(zip(rows, result.tokens.tolist(), strict=True)):
        if seq.epoch != epoch:
            continue  # ended, retracted or extended since it was planned
        if prompt_scores and row in prompt_scores and not seq.scored:
            seq.prompt_scores += prompt_scores[row]
        if does is DRAWS:
            piece = Piece(seq.id, [token])
            tokens = seq.tokens
            tokens.append(token)
            seq.flying -= 1
            count.generated_tokens += 1
            if scores and row in scores:
                piece.scores.append(scores[row])
            n = len(tokens)
            if token in seq.stops and n - seq.first > seq.sampling.min_new_tokens:
                piece.finish = Finish("stop", token)
            elif seq.cursor is not None and (ended := advance(state, seq, token)):
                piece.finish = ended
            elif n >= seq.last:
                piece.finish = Finish("length")
            elif seq.cursor is not None:
                look_ahead(state, seq, piece)
            elif seq.stop_texts and state.words is not None:
                piece.paused = _stops(seq, state.words, token)
        elif does is FILLS:
            continue
        else:
            piece = Piece(seq.id, [], Finish("length"), embedding=result.embeddings.get(row, b""))
        if seq.cached:
            piece.cached_tokens, seq.cached = seq.cached, 0
        if not seq.scored:
            piece.prompt_scores = _prompt_scores(seq)
        pieces.append(piece)
        if piece.finish is not None:
            pieces += end(state, seq, piece.finish, now)
        elif piece.paused:
            state.pause(seq)
    return pieces


def _stops(seq: Seq, words: Sequence[bytes], token: int) -> bool:
    """Whether what `token` says ends a stop string. The front, which has the text, judges: this saves it a step."""
    text = seq.tail + words[token] if token < len(words) else seq.tail
    found = any(stop in text for stop in seq.stop_texts)
    seq.tail = b"" if found else text[max(0, len(text) - max(map(len, seq.stop_texts)) + 1) :]
    return found


def _prompt_scores(seq: Seq) -> list[Score]:
    assert seq.logprobs is not None
    seq.scored = True
    head = [Score(seq.tokens[0], None)] if seq.logprobs.start == 0 else []
    return head + seq.prompt_scores
