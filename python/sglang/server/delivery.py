"""What the worker says, brought to who waits for it: pieces go to their streams, then readers have their turns.

Readers come in two kinds: of an iterator the task is woken; one with a Sink is written to from here, which costs an
event stream no task switch per token.
"""

import asyncio
import time

from sglang.base.messages import Finish, Piece, Step
from sglang.server.metrics import Metrics
from sglang.server.outbox import Outbox, is_ahead
from sglang.server.streams import Group, Output, Stream

ROUND = 64  # readers served before the loop looks after others: about half a millisecond
REST_S = 0.02  # at most; after a round of writing a pause as long as it, so that others get half of the loop


class Delivery:
    def __init__(self, outbox: Outbox, metrics: Metrics) -> None:
        self._outbox = outbox
        self._metrics = metrics
        self._due: list[Group] = []  # to be written to

    def file(self, step: Step) -> None:
        """Its pieces go to their streams, the times between them to the metrics."""
        now = time.monotonic()
        streams, metrics = self._outbox.streams, self._metrics
        metrics.step(step.stats, now)
        gaps: dict[float, int] = {}  # when sequences had their last token -> how many of them have one now
        for waited_s in step.waited:
            metrics.queued.observe(waited_s)
        known = streams.get
        for piece in step.pieces:
            stream = known(piece.id)
            if stream is None:
                continue  # forgotten while its token was on the way
            if piece.finish is not None:
                stream.ended = True
                del streams[piece.id]
                if (held := stream.request.held) is not None and held.ahead is not None:
                    held.ahead.stream.began = now
            if count := len(piece.tokens):
                last, stream.last = stream.last, now
                if last and count == 1:  # most had it together
                    gaps[last] = gaps.get(last, 0) + 1
                elif last:
                    metrics.between_tokens.observe((now - last) / count, count)
                else:
                    metrics.first_token.observe(now - stream.began)
            self._hand_over(stream, piece)
        for last, count in gaps.items():
            metrics.between_tokens.observe(now - last, count)

    def _hand_over(self, stream: Stream, piece: Piece) -> None:
        stream.pieces.append(piece)
        stream.pending += len(piece.tokens)
        if stream.queued or (piece.finish is None and stream.pending < stream.wanted):
            return
        stream.queued = True
        group = stream.group
        group.ready.append(stream)
        if group.frame is None:
            group.wake()
        elif not group.due and not group.waits:
            group.due = True
            self._due.append(group)

    async def write_all(self) -> None:
        """Every reader its turn; between some of them, and for as long as it took after all, others have theirs."""
        due, self._due = self._due, []
        busy, began = 0.0, time.thread_time()  # ours, not what woken clients take of our core meanwhile
        for i in range(0, len(due), ROUND):
            if i:
                busy += time.thread_time() - began
                await asyncio.sleep(0)
                began = time.thread_time()
            for group in due[i : i + ROUND]:
                self._write(group)
        busy += time.thread_time() - began
        if len(due) > ROUND:
            await asyncio.sleep(min(busy, REST_S))

    def _write(self, group: Group) -> None:
        """What has come for a reader that is written to, unless its client is behind."""
        group.due = False
        sink, frame = group.sink, group.frame
        if sink is None or frame is None or group.waits or not group.ready or group.error is not None:
            return
        ready, group.ready = group.ready, []
        now = time.monotonic()
        data = b""
        try:
            for stream in ready:
                output = stream.take(now)
                if output is None or output.finish is not None or stream.paused:
                    self._follow(stream, output, now)
                if output is not None:
                    event = frame(stream.index, output)
                    data = data + event if data else event
            if not group.left:
                group.rest = data
                group.wake()
            elif data:
                group.waits = not sink.write(data, group.on_room)
        except Exception as error:  # of this reader, not of the others
            group.error = error
            group.wake()

    def has_room(self, group: Group) -> None:
        group.waits = False
        self._write(group)

    def take(self, stream: Stream, now: float) -> Output | None:
        """As `stream.take`; the worker is told what follows from it."""
        output = stream.take(now)
        self._follow(stream, output, now)
        return output

    def _follow(self, stream: Stream, output: Output | None, now: float) -> None:
        if output is not None and output.finish is not None:
            stream.group.left -= 1
            self._outbox.end(stream, output, now)
        elif stream.paused:
            self._outbox.resume(stream)

    def stop(self, streams: list[Stream], finish: Finish) -> int:
        """End them with `finish`, which their readers get as a last output. How many there were."""
        streams = [stream for stream in streams if not is_ahead(stream)]  # those go with the one before them
        for stream in streams:
            self._outbox.forget(stream)
            self._metrics.aborted += 1
            self._hand_over(stream, Piece(stream.id, [], finish))
        due, self._due = self._due, []
        for group in due:
            self._write(group)
        return len(streams)
