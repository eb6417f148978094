"""Steps that nobody asked for, so that no request waits for a compiler: every shape that has kernels of its own, once.

Rows of several tokens differ by the length of the longest (`kernels.attention.extend_tuning`), decodes by the parts
that a sequence is cut into and how many of them are merged, and by whether they share keys. All kernels are compiled
side by side, then every shape is run, which loads them, and those of cuBLAS.
"""

import bisect
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec import structs

from sglang.attention import cascade
from sglang.base.plan import FREE, Plan
from sglang.engine.pool import blind_step
from sglang.kernels import matvec, skinny
from sglang.kernels.compiling import compile_ahead
from sglang.kernels.matvec import FEW as FEW_ROWS
from sglang.models.decoder import Model

if TYPE_CHECKING:
    from sglang.engine.engine import Flight
    from sglang.engine.fills import Fills
    from sglang.engine.graphs import DecodeGraphs

log = logging.getLogger("sglang.engine")
LONG = (128, 2)  # tokens of a row
FEW = 128  # rows that are enough to have in common what is shared


def begin(model: Model, tokens: int, draws: int) -> None:
    """Compile what must run before all else can be compiled: kernels that are tried, and those of the largest step,
    whose memory is measured."""
    tried = [matvec, skinny] if model.dtype in matvec.TYPES else []
    with model.abridged():
        compile_ahead(lambda: [*(one.rehearse(model.dtype) for one in tried), blind_step(model, tokens, draws)])
    for one in tried:
        one.works(model.dtype)


def warm(
    launch: Callable[[Plan], "Flight"],
    plans: list[Plan],
    captures: "Sequence[DecodeGraphs | Fills]",
    model: Model,
    more: Callable[[], object] = lambda: None,
) -> None:
    """Before any real plan, since it writes to many slots and to the first cells.

    captures: what makes graphs of plans that are run.
    more: what is only to be compiled.
    """
    began = time.monotonic()
    able = [one for one in captures if one.captures]
    for one in able:
        one.captures = False  # a graph would hold what was not launched: nothing
    with model.abridged():
        compiled = compile_ahead(lambda: [*map(launch, plans), more()])
        torch.cuda.synchronize()
        ran = time.monotonic()
        for plan in plans:
            launch(plan).wait()
    for one in able:
        one.captures = True
    times = ran - began, time.monotonic() - ran
    log.info("start: %d launches of kernels compiled in %.1f s, run in %.1f s", compiled, *times)


def plans(slots: int, kv_heads: int, pages: int, page_size: int, context: int, shares: bool) -> list[Plan]:
    """What fits. shares: keys in common are read once. Every sequence uses the same first pages."""
    most = min(pages * page_size, context) - 1  # tokens of a sequence before its last
    found = [_plan(1, 0, tokens, page_size) for tokens in dict.fromkeys(max(1, min(most, n)) for n in LONG)]
    # The most rows: each is drawn by one program then, a few by several (`kernels.sample`).
    found += [_plan(rows, 0, 1, page_size) for rows in sorted({*decodes(slots, kv_heads), slots})]
    common = sharing(slots, kv_heads) if shares else []
    found += [_plan(rows, keys, 1, page_size) for rows, keys in common if keys <= most]
    return found


def beside(slots: int, kv_heads: int, pages: int, page_size: int, context: int, shares: bool) -> list[Plan]:
    """Decodes beside a prompt that no graph has room for: theirs file their keys by themselves, these do not. For
    kernels that are only to be compiled, which do not depend on the prompt's length."""
    from sglang.kernels import attention as kernels

    if slots < 2:
        return []
    most = min(pages * page_size, context) - 1
    rooms: dict[int, int] = {}
    for rows in decodes(slots - 1, kv_heads):
        rooms.setdefault(kernels.merge_room(kernels.splits_for(rows, kv_heads)), rows)
    found = [(rows, 0) for rows in rooms.values()]
    found += [(rows, keys) for rows, keys in (sharing(slots - 1, kv_heads) if shares else ()) if keys <= most]
    return [_plan(rows, keys, 1, page_size, min(most, LONG[0])) for rows, keys in found]


def held(plans: list[Plan]) -> list[Plan]:
    """The same plans, their rows drawn by the kernels of rows under constraints."""
    return [structs.replace(plan, places=np.full(len(plan.slots), FREE, np.int32)) for plan in plans]


def decodes(slots: int, kv_heads: int) -> list[int]:
    """Numbers of rows, one for each set of kernels. A single row has its own, and few rows some that start early."""
    from sglang.engine.graphs import sizes
    from sglang.kernels import attention as kernels

    found: dict[tuple[int, int], int] = {}
    for rows in sizes(slots):
        found.setdefault((kind_of(rows), kernels.merge_room(kernels.splits_for(rows, kv_heads))), rows)
    return list(found.values())


def kind_of(rows: int) -> int:
    """Of what kernels of decodes depend on, besides attention's parts (`kernels.matvec`, `kernels.skinny`, `OWN`)."""
    from sglang.attention.triton import OWN

    return bisect.bisect_left((1, OWN, 16, FEW_ROWS), rows)


def sharing(slots: int, kv_heads: int) -> list[tuple[int, int]]:
    """The same for decodes that share keys: rows, and as many keys as are worth reading once (`attention.cascade`)."""
    from sglang.engine.graphs import sizes
    from sglang.kernels import attention as kernels

    found: dict[tuple[bool, int], int] = {}
    for rows in sorted((n for n in sizes(slots) if n > 1), key=lambda n: (n > FEW, abs(FEW - n))):
        parts = kernels.splits_for(rows, kv_heads) + cascade.ENTRIES
        found.setdefault((rows <= FEW_ROWS, kernels.merge_room(parts)), rows)
    worth = [max(cascade.LEAST_KEYS, -(-cascade.WORTH // (rows - 1))) for rows in found.values()]
    return [(rows, -(-keys // cascade.KEYS) * cascade.KEYS) for rows, keys in zip(found.values(), worth, strict=True)]


def _plan(rows: int, start: int, tokens: int, page_size: int, prompt: int = 0) -> Plan:
    """`rows` sequences, each with `tokens` tokens from position `start` on, and one with those of a `prompt`. Without
    seats: slots that nobody ever took draw the most likely token."""
    counts, starts = np.full(rows, tokens, np.int32), np.full(rows, start, np.int32)
    if prompt:
        counts, starts = np.append(counts, np.int32(prompt)), np.append(starts, np.int32(0))
    rows, slots = len(counts), np.arange(len(counts), dtype=np.int32)
    pages = np.arange(-(-max(start + tokens, prompt) // page_size), dtype=np.int32)
    return Plan(
        step=0,
        slots=slots,
        starts=starts,
        counts=counts,
        samples=np.ones(rows, np.bool_),
        tokens=np.zeros(int(counts.sum()), np.int32),
        table_slots=np.repeat(slots, len(pages)),
        table_index=np.tile(pages, rows),
        table_pages=np.tile(pages, rows),
    )
