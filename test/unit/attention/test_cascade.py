"""What rows share, against a search that compares all pairs; then attention that reads it once, against float64."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sglang.attention.base import Look, Rows, Shape
from sglang.attention.cascade import COLUMNS, ENTRIES, KEYS, find, most_tiles
from sglang.attention.torch_native import TorchAttention


def tree(lengths: Sequence[tuple[int, ...]], page_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Page tables and starts of rows; each is a path of stretches, and rows with the same first stretches share them.

    lengths: per row (name of stretch 1, its length, name of 2, its length, ...), in tokens.
    """
    known: dict[tuple[int, ...], np.ndarray] = {}
    fresh = 0
    tables = []
    for path in lengths:
        pages = []
        for i in range(0, len(path), 2):
            key = path[: i + 2]
            if key not in known or path[i] < 0:
                n = path[i + 1] // page_size
                known[key] = np.arange(fresh, fresh + n)
                fresh += n
            pages.append(known[key])
        pages.append(np.array([fresh]))
        fresh += 1
        tables.append(np.concatenate(pages))
    width = max(len(t) for t in tables)
    table = np.full((len(tables), width), fresh, np.int32)
    for row, pages in enumerate(tables):
        table[row, : len(pages)] = pages
    return table, np.array([(len(t) - 1) * page_size for t in tables])


def covered(table: np.ndarray, starts: np.ndarray, page_size: int, height: int) -> np.ndarray | None:
    """Checks that every row's shared keys are covered once, through pages that are its own. Returns `own`."""
    slots = np.arange(len(table))
    found = find(slots, starts, table, page_size, 8, height)
    if found is None:
        return None
    assert len(found.tiles) <= most_tiles(len(table))
    assert len(found.members) <= 3 * len(table)
    seen = np.zeros((len(table), int(starts.max()) + 1), int)
    entries: dict[int, set[int]] = {}
    for slot, begin, end, entry, first, rows in found.tiles.tolist():
        assert begin % KEYS == end % KEYS == 0
        assert 0 <= entry < ENTRIES
        for row in found.members[first : first + rows].tolist():
            a, b = begin // page_size, -(-end // page_size)
            assert (table[row, a:b] == table[slot, a:b]).all()
            seen[row, begin:end] += 1
            assert entry not in entries.setdefault(row, set()), "two tiles write the same partial result"
            entries[row].add(entry)
        assert rows <= height
    for row, own in enumerate(found.own.tolist()):
        assert own <= starts[row]
        assert (seen[row, :own] == 1).all()
        assert (seen[row, own:] == 0).all()
        assert entries.get(row, set()) == set(range(found.used[row]))
    return found.own


@pytest.mark.parametrize("page_size", [1, 16])
def test_one_long_prefix_is_read_once(page_size: int) -> None:
    table, starts = tree([(0, 2048, -1, 96)] * 40, page_size)
    own = covered(table, starts, page_size, 32)
    assert own is not None
    assert (own == 2048).all()


def test_groups_within_groups_and_rows_that_share_nothing() -> None:
    rows = [(0, 1024, i // 8, 640, -1, 50) for i in range(32)] + [(-1, 700)] * 5 + [(9, 512, -1, 30)] * 6
    own = covered(*tree(rows), 1, 32)
    assert own is not None
    assert own.tolist() == [1664] * 32 + [0] * 5 + [512] * 6


@pytest.mark.parametrize(
    "rows",
    [
        [(-1, 3000)] * 30,
        [(0, 60, -1, 3000)] * 30,
        [(0, 2000)],
        [(0, 256, -1, 10)] * 4,
        [(i // 2, 4096, -1, 4) for i in range(512)],
    ],
    ids=["nothing", "too_short", "alone", "too_little", "too_many_pairs"],
)
def test_what_is_not_worth_it(rows: list[tuple[int, ...]]) -> None:
    assert covered(*tree(rows), 1, 32) is None


def test_random_trees_are_covered() -> None:
    random = np.random.default_rng(0)
    some = 0
    for _ in range(60):
        rows = []
        for _ in range(int(random.integers(2, 60))):
            depth = int(random.integers(0, 4))
            path: list[int] = []
            for _ in range(depth):
                name = int(random.integers(0, 3))
                path += [name, [64, 300, 1000][name]]
            rows.append((*path, -1, int(random.integers(1, 200))))
        some += covered(*tree(rows), 1, int(random.integers(1, 40))) is not None
    assert some > 10


LOOKS = {"plain": Look(), "window": Look(window=40), "cap, sinks": Look(softcap=2.0, sinks=torch.linspace(-1, 2, 8))}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(("heads", "dim", "page_size"), [((8, 2), 64, 1), ((8, 8), 32, 4), ((6, 2), 48, 1)])
def test_attention_over_shared_keys_equals_the_reference(
    look: str, heads: tuple[int, int], dim: int, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from sglang.attention import cascade
    from sglang.attention.triton import TritonAttention

    if look == "cap, sinks" and heads[0] != 8:
        return
    monkeypatch.setattr(cascade, "WORTH", 1)
    monkeypatch.setattr(cascade, "LEAST_SAVED", 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = torch.Generator().manual_seed(1)
    table, starts = tree(
        [(0, 128, 1, 192, -1, 8)] * 3 + [(0, 128, 2, 128, -1, 16)] * 2 + [(-1, 36)] + [(5, 196, -1, 4)] * 2, page_size
    )
    cells = (int(table.max()) + 1) * page_size
    shape = Shape(*heads, dim, dim**-0.5)
    pool = [torch.randn(cells, heads[1], dim, generator=random) for _ in range(2)]
    wide = TorchAttention(shape, [pool[0].double()], [pool[1].double()])
    own = TritonAttention(
        shape, [pool[0].to(device)], [pool[1].to(device)], torch.from_numpy(table).to(device), page_size, 64
    )
    # A row of several tokens beside the decodes, which are in the middle.
    slots, counts = np.arange(len(table))[::-1].copy(), np.ones(len(table), np.int64)
    starts = starts[slots]
    counts[3], starts[3] = 5, starts[3] - 4
    rows = Rows(slots, starts, counts, table, page_size)
    packed = torch.randn(int(counts.sum()), heads[0] + 2 * heads[1], dim, generator=random)
    parts = [heads[0], heads[1], heads[1]]
    wide.plan(rows)
    wanted = wide.attend(*(t.double() for t in packed.split(parts, 1)), 0, LOOKS[look])
    own.plan(rows)
    assert own._step is not None
    assert own._step.shared is not None
    given = LOOKS[look]
    moved = Look(given.window, given.chunk, given.softcap, None if given.sinks is None else given.sinks.to(device))
    got = own.attend(*packed.to(device).split(parts, 1), 0, moved).double().cpu()
    assert torch.linalg.norm(got - wanted) < 2e-6 * torch.linalg.norm(wanted)
    assert own.shares, "the kernels for shared keys failed and were left"
    assert own._step.shared.tiles.shape[1] == COLUMNS
