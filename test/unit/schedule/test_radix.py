"""The radix tree against a dictionary: whatever is filed, held, split and evicted, it finds what is there, no more."""

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang.schedule.radix import Node, RadixTree

NAMES = ("", "salt")
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=24)


@dataclass
class Held:
    namespace: str
    tokens: list[int]
    pages: list[int]
    node: Node


def array(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


class Tree(RuleBasedStateMachine):
    """`known`: (namespace, a prefix of whole pages) -> the page that holds its last tokens."""

    @initialize(size=st.sampled_from([1, 2, 3]))
    def start(self, size: int) -> None:
        self.size = size
        self.tree = RadixTree(size)
        self.known: dict[tuple[str, tuple[int, ...]], int] = {}
        self.held: list[Held] = []
        self.next_page = 0

    def _whole(self, tokens: list[int]) -> list[tuple[int, ...]]:
        return [tuple(tokens[:n]) for n in range(self.size, len(tokens) + 1, self.size)]

    def _found(self, name: str, tokens: list[int]) -> list[int]:
        pages: list[int] = []
        for prefix in self._whole(tokens):
            if (name, prefix) not in self.known:
                break
            pages.append(self.known[name, prefix])
        return pages

    @rule(name=st.sampled_from(NAMES), tokens=PROMPTS)
    def match(self, name: str, tokens: list[int]) -> None:
        node, pages = self.tree.match(name, array(tokens))
        assert pages.tolist() == self._found(name, tokens)
        assert self.tree.lengths(name, array(tokens)) == len(pages) * self.size
        if len(pages):
            assert node.pages[-1] == pages[-1], "the node ends where the match does"

    @rule(name=st.sampled_from(NAMES), tokens=PROMPTS, hold=st.booleans())
    def insert(self, name: str, tokens: list[int], hold: bool) -> None:
        prefixes = self._whole(tokens)
        own = list(range(self.next_page, self.next_page + len(prefixes)))
        self.next_page += len(prefixes)
        had = self._found(name, tokens)
        node, path = self.tree.insert(self.tree.root(name), array(tokens[: len(prefixes) * self.size]), array(own))
        expected = had + own[len(had) :]
        assert path.tolist() == expected
        self.known.update({(name, prefix): page for prefix, page in zip(prefixes, expected, strict=True)})
        if hold:
            self.tree.hold(node)
            self.held.append(Held(name, tokens, expected, node))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=PROMPTS)
    def insert_after(self, data: st.DataObject, more: list[int]) -> None:
        held = data.draw(st.sampled_from(self.held))
        begin = len(held.pages)
        prefixes = self._whole(held.tokens[: begin * self.size] + more)
        own = list(range(self.next_page, self.next_page + len(prefixes) - begin))
        self.next_page += len(own)
        if not own:
            return
        had = self._found(held.namespace, list(prefixes[-1]))
        node, path = self.tree.insert(held.node, array(more[: len(own) * self.size]), array(own))
        expected = had + own[len(had) - begin :]
        assert path.tolist() == expected[begin:]
        assert node.pages[-1] == expected[-1]
        self.known.update({(held.namespace, prefix): page for prefix, page in zip(prefixes, expected, strict=True)})

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.tree.release(held.node)

    @rule(wanted=st.integers(0, 12))
    def evict(self, wanted: int) -> None:
        could = self.tree.evictable
        freed = self.tree.evict(wanted)
        assert min(wanted, could) <= len(freed) <= could
        assert len(set(freed)) == len(freed)
        assert not set(freed) & {page for held in self.held for page in held.pages}, "somebody reads this page"
        gone = {key for key, page in self.known.items() if page in set(freed)}
        assert len(gone) == len(freed), "pages that the tree never had"
        for key in gone:
            del self.known[key]
        for name, prefix in self.known:  # leaves go first: what is left has all that is before it
            assert len(self._found(name, list(prefix))) * self.size == len(prefix)

    @invariant()
    def pages_are_counted_and_held_ones_stay(self) -> None:
        if not hasattr(self, "tree"):
            return
        assert self.tree.pages == len(self.known)
        assert self.tree.held_pages == len({page for held in self.held for page in held.pages})
        for held in self.held:
            assert self._found(held.namespace, held.tokens)[: len(held.pages)] == held.pages

    def teardown(self) -> None:
        if not hasattr(self, "tree"):
            return
        for held in self.held:
            self.tree.release(held.node)
        assert sorted(self.tree.clear()) == sorted(self.known.values())
        assert self.tree.pages == self.tree.held_pages == 0
        assert len(self.tree.match("", array([0, 1, 2]))[1]) == 0


TestTree = Tree.TestCase
TestTree.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_what_was_used_least_recently_goes_first_and_shared_heads_last() -> None:
    tree = RadixTree(1)
    for i, tail in enumerate([[1, 2], [3, 4], [5, 6]]):
        tree.insert(tree.root(""), array([0, *tail]), array([100, 10 * i, 10 * i + 1]))
    tree.match("", array([0, 1, 2]))
    assert set(tree.evict(2)) == {10, 11}
    assert set(tree.evict(2)) == {20, 21}
    assert tree.evict(1) == [1], "the end of a tail before its beginning"
    assert set(tree.evict(9)) == {0, 100}
