"""The order in which waiting sequences are looked at.

Age is that of the first sequence that one continues (`Submit.place`). So the calls of a program are done together, in
the order of its tree: what a parent has computed is used by its forks before others need the room, and few programs
are under way at a time instead of all.
"""

from operator import attrgetter

from sglang.schedule.radix import Node
from sglang.schedule.state import Seq, State

LONG_QUEUE = 128  # beyond it matching everybody costs more than a better order gains: order of arrival
PATIENCE_S = 10.0  # whoever waited longer goes first, whatever the policy: nobody starves


def order(state: State, now: float) -> list[Seq]:
    """The queue, best first. Retracted sequences keep their age, so they are early in every order."""
    queue = state.waiting
    policy = state.budget.policy
    by_prefix = policy in ("lpm", "dfs-weight")
    if len(queue) == 1:
        return list(queue)
    by_age = sorted(queue, key=attrgetter("order"))
    if policy == "fcfs" or (by_prefix and (not state.budget.radix or len(queue) > LONG_QUEUE)):
        return by_age
    impatient = max((i + 1 for i, seq in enumerate(by_age) if now - seq.since > PATIENCE_S), default=0)
    old, rest = by_age[:impatient], by_age[impatient:]
    if policy == "random":
        state.random.shuffle(rest)
    elif policy == "lpm":
        rest.sort(key=lambda seq: -cached(state, seq))  # stable: ties by age
    elif policy == "lof":
        rest.sort(key=lambda seq: seq.length - seq.last)
    elif policy == "dfs-weight":
        rest = _depth_first(state, rest)
    return old + rest


def cached(state: State, seq: Seq) -> int:
    """Tokens of a waiting sequence that the tree has."""
    if not state.budget.radix:
        return 0
    version, tokens = seq.hint
    if version != state.tree.version:
        tokens = state.tree.lengths(seq.namespace, seq.array(len(seq.tokens) - 1))
        seq.hint = (state.tree.version, tokens)
    return tokens


def _depth_first(state: State, queue: list[Seq]) -> list[Seq]:
    """Tree order, at each node the child with most waiting below it first: an edge is used up before it is left."""
    weight: dict[int, int] = {}
    below: dict[int, list[Node]] = {}
    at: dict[int, list[Seq]] = {}
    roots: dict[int, Node] = {}
    for seq in queue:
        node, _ = state.tree.match(seq.namespace, seq.array(len(seq.tokens) - 1))
        at.setdefault(id(node), []).append(seq)
        while True:
            fresh = id(node) not in weight
            weight[id(node)] = weight.get(id(node), 0) + 1
            if node.parent is None:
                roots[id(node)] = node
                break
            if fresh:
                below.setdefault(id(node.parent), []).append(node)
            node = node.parent
    ordered: list[Seq] = []
    stack = sorted(roots.values(), key=lambda n: weight[id(n)])
    while stack:
        node = stack.pop()
        ordered += at.get(id(node), [])
        stack += sorted(below.get(id(node), []), key=lambda n: weight[id(n)])
    return ordered
