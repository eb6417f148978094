"""Radix tree from token prefixes to KV pages (RadixAttention, arXiv 2312.07104).

An edge holds any number of whole pages of tokens. A node is held by every sequence that reads it, together with its
ancestors; what nobody holds is evicted leaf by leaf, least recently used first, so shared prefixes outlive tails.
"""

import heapq
import itertools

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]  # [n]
Pages = NDArray[np.int32]  # [n // page_size]


class Node:
    __slots__ = ("children", "holders", "pages", "parent", "stamp", "tokens")

    def __init__(self, parent: "Node | None", tokens: Tokens, pages: Pages, stamp: int):
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.children: dict[bytes, Node] = {}  # first page of the child's tokens -> child
        self.holders = 0
        self.stamp = stamp  # last use, as a count of uses

    @property
    def alive(self) -> bool:
        return self.parent is not None


_NOTHING = np.empty(0, np.int32)


class RadixTree:
    """One tree per namespace over one pool of pages. Token arrays are int32; lengths are cut to whole pages."""

    def __init__(self, page_size: int):
        self.page_size = page_size
        self.pages = 0  # in the tree
        self.held_pages = 0  # of these, held by somebody
        self.version = 0  # changes whenever a longer match may be possible
        self._roots: dict[str, Node] = {}
        self._uses = 0
        self._idle: list[tuple[int, int, Node]] = []  # heap of leaves nobody held when they were pushed
        self._ties = itertools.count()

    @property
    def evictable(self) -> int:
        """Pages that `evict` could free now."""
        return self.pages - self.held_pages

    def root(self, namespace: str) -> Node:
        """The empty prefix of a namespace."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(None, _NOTHING, _NOTHING, 0)
        return root

    def match(self, namespace: str, tokens: Tokens) -> tuple[Node, Pages]:
        """Longest cached prefix of `tokens`, in whole pages.

        tokens: int32 [n]. Returns the deepest node and int32 [k], k <= n // page_size.
        The pages stay valid only while somebody `hold`s the node; `evict` may take them otherwise.
        Splits a node rather than return half of it, so the tree may change shape, never content.
        """
        return self._follow(self.root(namespace), tokens)

    def _follow(self, node: Node, tokens: Tokens) -> tuple[Node, Pages]:
        """`match` of what comes after `node`."""
        parts: list[Pages] = []
        self._uses += 1
        size = self.page_size
        done, limit = 0, len(tokens) - len(tokens) % size
        while done < limit:
            child = node.children.get(tokens[done : done + size].tobytes())
            if child is None:
                break
            child.stamp = self._uses
            same = self._common(child.tokens, tokens[done:limit])
            if same < len(child.tokens):
                child = self._split(child, same)
            parts.append(child.pages)
            done += same
            node = child
            if same < len(node.tokens):
                break
        return node, np.concatenate(parts) if parts else _NOTHING

    def lengths(self, namespace: str, tokens: Tokens) -> int:
        """Tokens of the longest cached prefix; changes nothing."""
        node = self.root(namespace)
        size = self.page_size
        done, limit = 0, len(tokens) - len(tokens) % size
        while done < limit:
            child = node.children.get(tokens[done : done + size].tobytes())
            if child is None:
                break
            same = self._common(child.tokens, tokens[done:limit])
            done += same
            node = child
            if same < len(child.tokens):
                break
        return done

    def insert(self, after: Node, tokens: Tokens, pages: Pages) -> tuple[Node, Pages]:
        """File `pages` under what `after`, a root or a held node, stands for and then `tokens` (whole pages of both).
        The tree takes over the pages it did not have.

        Returns the node that ends there and the pages on the way from `after`: where they differ from `pages`, the tree
        already had these tokens, and the caller keeps (and should free) its own copy.
        """
        assert len(tokens) == len(pages) * self.page_size
        node, had = self._follow(after, tokens)
        if len(had) == len(pages):
            return node, had
        at = len(had)
        leaf = Node(node, tokens[at * self.page_size :].copy(), pages[at:].copy(), self._uses)
        node.children[leaf.tokens[: self.page_size].tobytes()] = leaf
        self.pages += len(leaf.pages)
        self.version += 1
        self._rest(leaf)
        return leaf, np.concatenate((had, leaf.pages)) if at else leaf.pages

    def hold(self, node: Node) -> None:
        """Keep the path to `node` from being evicted until `release`."""
        while node.parent is not None:
            if node.holders == 0:
                self.held_pages += len(node.pages)
            node.holders += 1
            node = node.parent

    def release(self, node: Node) -> None:
        """Being held was a use of the whole path."""
        self._uses += 1
        while node.parent is not None:
            assert node.holders > 0, "released more often than held"
            node.holders -= 1
            node.stamp = self._uses
            if node.holders == 0:
                self.held_pages -= len(node.pages)
                self._rest(node)
            node = node.parent

    def evict(self, wanted: int) -> list[int]:
        """Free at least `wanted` pages where that many are evictable, else all that are. Returns them."""
        freed: list[int] = []
        while len(freed) < wanted and self._idle:
            stamp, _, node = heapq.heappop(self._idle)
            if not node.alive or node.holders or node.children:
                continue
            if node.stamp != stamp:  # used since it was pushed
                self._rest(node)
                continue
            parent = node.parent
            assert parent is not None
            keep = max(0, len(node.pages) - (wanted - len(freed)))
            freed += node.pages[keep:].tolist()
            self.pages -= len(node.pages) - keep
            if keep:  # the head of a long tail stays
                node.tokens, node.pages = node.tokens[: keep * self.page_size], node.pages[:keep]
                self._rest(node)
                continue
            del parent.children[node.tokens[: self.page_size].tobytes()]
            node.parent = None
            self._rest(parent)
        return freed

    def clear(self) -> list[int]:
        """Drop everything; nobody may hold anything. Returns the pages."""
        assert self.held_pages == 0, "cleared while held"
        freed = self.evict(self.pages)
        assert self.pages == 0
        self._roots.clear()
        self._idle.clear()
        return freed

    def _rest(self, node: Node) -> None:
        if node.alive and not node.holders and not node.children:
            heapq.heappush(self._idle, (node.stamp, next(self._ties), node))
            if len(self._idle) > 1024 and len(self._idle) > 4 * self.pages:
                live = {n for _, _, n in self._idle if n.alive and not n.holders and not n.children}
                self._idle = [(n.stamp, next(self._ties), n) for n in live]
                heapq.heapify(self._idle)

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` after `at` tokens; returns the new upper half."""
        parent = node.parent
        assert parent is not None
        size, page = self.page_size, at // self.page_size
        upper = Node(parent, node.tokens[:at], node.pages[:page], node.stamp)
        upper.holders = node.holders
        parent.children[upper.tokens[:size].tobytes()] = upper
        node.tokens, node.pages, node.parent = node.tokens[at:], node.pages[page:], upper
        upper.children[node.tokens[:size].tobytes()] = node
        return upper

    def _common(self, a: Tokens, b: Tokens) -> int:
        """Length of the common prefix in whole pages, in tokens. Looks in growing blocks: edges may be very long."""
        n = min(len(a), len(b))
        at, block = 0, 4096
        while at < n:
            end = min(n, at + block)
            differ = a[at:end] != b[at:end]
            first = int(differ.argmax())
            if differ[first]:
                n = at + first
                break
            at, block = end, 4 * block
        return n - n % self.page_size
