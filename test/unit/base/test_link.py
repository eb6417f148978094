"""Links keep order, lose nothing, wake whoever waits and end without hanging; both makers alike."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sglang.base.link import Memory, Socket, connect, listen, pair
from sglang.base.messages import Abort, Flushed, FromWorker, Stats, Step, Stop, ToWorker

HANG_S = 100  # what takes longer hangs: a busy machine may keep a thread waiting for seconds

Ends = tuple[Any, Any]  # front's, worker's
Make = Callable[[], Ends]


@pytest.fixture(params=["memory", "socket"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Any] = []

    def ends() -> Ends:
        both = pair() if request.param == "memory" else sockets(tmp_path)
        made.extend(both)
        return both

    yield ends
    for end in made:
        end.close()


def sockets(folder: Path) -> tuple[Socket[FromWorker, ToWorker], Socket[ToWorker, FromWorker]]:
    address = f"ipc://{folder}/link"
    return listen(address), connect(address)


def take(end: Any, count: int, timeout_s: float = HANG_S) -> list[Any]:
    """`count` messages, however many come at a time."""
    got: list[Any] = []
    deadline = time.monotonic() + timeout_s
    while len(got) < count and time.monotonic() < deadline:
        got += end.receive(0.1)
    return got


def test_messages_arrive_in_order_both_ways(make: Make) -> None:
    front, worker = make()
    down, up = [Abort(i) for i in range(500)], [Flushed(i, True) for i in range(500)]
    for a, b in zip(down, up, strict=True):
        front.send(a)
        worker.send(b)
    assert take(worker, 500) == down
    assert take(front, 500) == up


def test_a_message_sent_before_the_other_end_is_there_is_kept(tmp_path: Path) -> None:
    worker = connect(f"ipc://{tmp_path}/link")
    worker.send(Flushed(1, True))
    front = listen(f"ipc://{tmp_path}/link")
    assert take(front, 1) == [Flushed(1, True)]
    front.close()
    worker.close()


def test_receiving_without_time_does_not_wait(make: Make) -> None:
    _, worker = make()
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert worker.receive() == []
        took.append(time.monotonic() - began)
    assert min(took) < 0.05


def test_receiving_waits_as_long_as_told(make: Make) -> None:
    _, worker = make()
    began = time.monotonic()
    assert worker.receive(0.1) == []
    assert 0.09 < time.monotonic() - began < HANG_S


@pytest.mark.parametrize("timeout_s", [None, 2.0 * HANG_S])
def test_a_message_wakes_who_waits(make: Make, timeout_s: float | None) -> None:
    front, worker = make()
    take_after(front, 0.05)
    began = time.monotonic()
    assert worker.receive(timeout_s) == [Stop()]
    assert time.monotonic() - began < HANG_S


def take_after(front: Any, pause_s: float) -> None:
    threading.Timer(pause_s, front.send, [Stop()]).start()


def test_the_event_loop_gets_everything_from_a_thread_that_sends_at_random_times(make: Make) -> None:
    front, worker = make()
    count = 2000

    def send() -> None:
        for i in range(count):
            worker.send(Flushed(i, True))
            if i % 97 == 0:
                time.sleep(0.001)

    async def read() -> list[Any]:
        got: list[Any] = []
        while len(got) < count:
            got += await asyncio.wait_for(front.receive_async(), HANG_S)
        return got

    thread = threading.Thread(target=send)
    thread.start()
    assert asyncio.run(read()) == [Flushed(i, True) for i in range(count)]
    thread.join()


def test_awaiting_does_not_hold_up_the_loop_and_sending_meanwhile_loses_no_wake_up(make: Make) -> None:
    front, worker = make()

    def answer() -> None:
        for _ in range(200):
            [message] = take(worker, 1)
            worker.send(Flushed(message.id, True))

    async def talk() -> None:
        for i in range(200):
            waiting = asyncio.create_task(front.receive_async())
            await asyncio.sleep(0)
            front.send(Abort(i))
            assert await asyncio.wait_for(waiting, HANG_S) == [Flushed(i, True)]

    thread = threading.Thread(target=answer)
    thread.start()
    asyncio.run(talk())
    thread.join()


def test_waiting_that_was_cancelled_takes_no_message_with_it(make: Make) -> None:
    front, worker = make()

    async def main() -> None:
        waiting = asyncio.create_task(front.receive_async())
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        worker.send(Flushed(1, True))
        assert await asyncio.wait_for(front.receive_async(), HANG_S) == [Flushed(1, True)]

    asyncio.run(main())


def test_sending_never_waits_for_a_reader_that_sleeps(make: Make) -> None:
    front, worker = make()
    big = Step([], Stats())
    for _ in range(20_000):
        worker.send(big)  # nobody reads before the last is sent: who waited for that would hang
    assert len(take(front, 20_000)) == 20_000


def test_closing_ends_at_once_even_with_nobody_at_the_other_end(tmp_path: Path) -> None:
    alone = connect(f"ipc://{tmp_path}/alone")
    alone.send(Flushed(1, True))
    began = time.monotonic()
    alone.close()
    assert time.monotonic() - began < HANG_S, "ZeroMQ by itself waits for ever"


def test_closing_after_awaiting_ends_too(tmp_path: Path) -> None:
    front, worker = sockets(tmp_path)

    async def main() -> None:
        waiting = asyncio.create_task(front.receive_async())
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(main())
    began = time.monotonic()
    front.close()
    worker.close()
    assert time.monotonic() - began < HANG_S


def test_a_message_of_the_wrong_direction_is_an_error_and_not_silence(tmp_path: Path) -> None:
    front, worker = sockets(tmp_path)
    sender: Any = worker
    sender.send(Abort(1))  # a worker has nothing to abort
    with pytest.raises(msgspec.ValidationError):
        front.receive(HANG_S)
    front.close()
    worker.close()


def test_a_memory_link_whose_loop_has_ended_can_still_be_sent_on() -> None:
    front, worker = pair()
    worker.send(Flushed(1, True))
    assert asyncio.run(front.receive_async()) == [Flushed(1, True)]
    worker.send(Flushed(2, True))
    assert front.receive() == [Flushed(2, True)]
    assert isinstance(front, Memory)
