"""Lists of different items out of a few: what stands between the brackets of an array."""

from collections.abc import Sequence
from functools import cache

from sglang.grammar.language import EMPTY, NOTHING, Node, alt, cat

ANY_ORDER = 8  # items: each subset of them is a place of its own


def lists(texts: Sequence[Node], comma: Node, low: int, high: int) -> Node:
    """`low` to `high` of `texts`, none of them twice: in any order where they are few, otherwise in theirs."""
    return _any_order(texts, comma, low, high) if len(texts) <= ANY_ORDER else _in_order(texts, comma, low, high)


def _any_order(texts: Sequence[Node], comma: Node, low: int, high: int) -> Node:
    @cache
    def after(used: int) -> Node:
        """What may follow items, whose bits are set in `used`."""
        count = used.bit_count()
        more = [i for i in range(len(texts)) if count < high and not used >> i & 1]
        ends = [EMPTY] if count >= low else []
        return alt(*ends, *(cat(comma if used else EMPTY, texts[i], after(used | 1 << i)) for i in more))

    return after(0)


def _in_order(texts: Sequence[Node], comma: Node, low: int, high: int) -> Node:
    """From the end: what may follow, for each number of items before it; all from `enough` on are alike."""
    enough = high if high < len(texts) else max(low, 1)
    follow = [EMPTY if count >= low else NOTHING for count in range(enough + 1)]
    for text in reversed(texts):
        more = [*follow[1:], NOTHING if high < len(texts) else follow[-1]]
        follow = [
            alt(without, cat(comma if count else EMPTY, text, then))
            for count, (without, then) in enumerate(zip(follow, more, strict=True))
        ]
    return follow[0]
