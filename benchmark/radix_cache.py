"""The prefix tree by itself: `python benchmark/radix_cache.py`.

Sequences of a multi-turn kind (system prompts shared by conversations, conversations that grow turn by turn) are
inserted until the tree holds a million tokens; then known prefixes are matched, then everything is evicted in pieces.
Microseconds per operation at growing sizes, and per token of the operation.
"""

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from results_file import add_flag, save

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

from sglang.schedule.radix import RadixTree

SYSTEM, TURN, SHARED_BY = 512, 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="Tokens in the tree at the end.")
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    add_flag(parser, "radix_cache")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    draw = np.random.default_rng(args.seed)
    tree, size = RadixTree(args.page_size), args.page_size
    marks = [args.tokens // k for k in (100, 10, 2, 1)]
    known: list[np.ndarray] = []
    rows = []
    inserts: list[float] = []
    next_page = 0
    system = draw.integers(0, 32000, SYSTEM, dtype=np.int32)
    for mark in marks:
        inserts.clear()
        while tree.pages * size < mark:
            if known and rng.random() < 0.7:  # another turn of a conversation
                tokens = np.concatenate([rng.choice(known[-2000:]), draw.integers(0, 32000, TURN, dtype=np.int32)])
            else:
                if rng.randrange(SHARED_BY) == 0:
                    system = draw.integers(0, 32000, SYSTEM, dtype=np.int32)
                tokens = np.concatenate([system, draw.integers(0, 32000, TURN, dtype=np.int32)])
            if len(tokens) > 4096:
                continue
            _, cached = tree.match("", tokens)
            fresh = np.arange(next_page, next_page + len(tokens) // size - len(cached), dtype=np.int32)
            next_page += len(fresh)
            pages = np.concatenate([cached, fresh])
            began = time.perf_counter()
            tree.insert(tree.root(""), tokens, pages)
            inserts.append(time.perf_counter() - began)
            known.append(tokens)
        matches, lengths = [], []
        for _ in range(2000):
            tokens = rng.choice(known)
            began = time.perf_counter()
            node, pages = tree.match("", tokens)
            matches.append(time.perf_counter() - began)
            lengths.append(len(tokens))
            assert len(pages) == len(tokens) // size
            tree.hold(node)
            tree.release(node)
        rows.append(
            {
                "tokens in the tree": tree.pages * size,
                "insert": round(1e6 * statistics.median(inserts), 1),
                "match": round(1e6 * statistics.median(matches), 1),
                "mean length": round(statistics.mean(lengths)),
                "match per token": round(1e9 * statistics.median(matches) / statistics.mean(lengths), 1),
                "evict": None,
            }
        )
    evicts, freed = [], 0
    while tree.pages:
        began = time.perf_counter()
        n = len(tree.evict(256))
        evicts.append((time.perf_counter() - began) / max(n, 1))
        freed += n
    assert freed == next_page, "every page comes back once"
    rows[-1]["evict"] = round(1e9 * statistics.median(evicts) * size, 1)
    for row in rows:
        print(row)
    if args.save:
        save(
            args.save,
            rows,
            title="The prefix tree by itself",
            units={"insert": "us", "match": "us", "match per token": "ns", "evict": "ns per token"},
            note=f"Page size {size}; conversations over shared system prompts; eviction in pieces of 256 pages.",
        )


if __name__ == "__main__":
    main()
