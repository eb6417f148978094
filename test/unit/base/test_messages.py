"""What travels between processes comes out as it went in, and nothing else comes out."""

import math
from typing import Any, get_args

import msgspec
import pytest

from sglang.base.messages import (
    Abort,
    Extend,
    Failed,
    Finish,
    Flush,
    Flushed,
    FromWorker,
    Logprobs,
    Piece,
    Ready,
    Resume,
    Score,
    Stats,
    Step,
    Stop,
    Submit,
    ToWorker,
    pack,
)
from sglang.base.sampling import SamplingParams

SAMPLING = SamplingParams(
    max_new_tokens=3, seed=2**63 - 1, logit_bias={7: -1.5}, stop=("\n", "日"), choices=("a", "b"), json_schema="{}"
)
SCORE = Score(5, -0.25, [(5, -0.25), (6, -1.5)], [(9, -math.inf)])
TO_WORKER: list[Any] = [
    Submit(2**40, pack([1, 2, 3]), SAMPLING, Logprobs(0, 5, (1, 2)), True, "key"),
    Submit(1, pack([]), SamplingParams()),
    Extend(3, 1, 2, [4], SAMPLING, None, False),
    Extend(5, 3, -1, [], SAMPLING, hold=True, ahead=4),
    Resume(2),
    Abort(1),
    Flush(3),
    Stop(),
]
FROM_WORKER: list[Any] = [
    Ready("llama", "L", "float32", "cpu", 10, 20, 30, 1, 4, 5, 6, 7, 0.5, (1, 2)),
    Step([Piece(1, [2], Finish("stop", 2), [SCORE], [Score(1, None), SCORE], 7), Piece(2, [])], Stats(running=1)),
    Step([Piece(1, [2], paused=True)], Stats()),
    Step([Piece(1, [], Finish("abort", None, "why", 503))], Stats()),
    Step([Piece(1, [3], Finish("stop", "text"))], Stats(), [0.25, 3.0]),
    Flushed(3, True),
    Failed("why", True),
]


@pytest.mark.parametrize("message", TO_WORKER)
def test_a_message_to_a_worker_arrives_unchanged(message: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToWorker) == message


@pytest.mark.parametrize("message", FROM_WORKER)
def test_a_message_from_a_worker_arrives_unchanged(message: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromWorker) == message


def test_every_kind_of_message_is_tried_here() -> None:
    assert {type(m) for m in TO_WORKER} == set(get_args(ToWorker))
    assert {type(m) for m in FROM_WORKER} == set(get_args(FromWorker))


@pytest.mark.parametrize(
    ("data", "direction"),
    [
        (b"", ToWorker),
        (b"\xc1", ToWorker),
        (msgspec.msgpack.encode(Ready("", "", "", "", 1, 1, 1, 1, 1, 1, 1, 1, 0.0, ())), ToWorker),
        (msgspec.msgpack.encode(Stop()), FromWorker),
        (msgspec.msgpack.encode(["Submit", "one", [1], {}]), ToWorker),
        (msgspec.msgpack.encode(["Submit", 1, ["x"], {}]), ToWorker),
        (msgspec.msgpack.encode(["Nonsense"]), ToWorker),
    ],
)
def test_what_is_no_message_of_this_direction_is_refused(data: bytes, direction: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(data, type=direction)


def test_records_do_not_share_their_empty_lists() -> None:
    one, other = Piece(1, []), Piece(2, [])
    one.scores.append(SCORE)
    assert other.scores == []
