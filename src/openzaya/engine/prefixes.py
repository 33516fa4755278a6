"""Which prompts begin alike: a radix tree over the prompts that wait and those whose state is kept.

A node stands where a prompt ends and where two part. So the nodes above a prompt's own are all the places at which its
state could serve another prompt, and going up from it finds the longest beginning that is kept.

        root ── question ──●── tail 3 ──●── tail 7 … ○ prompt that waits
                           │            └── tail 1 … ○ prompt whose state is kept
                           └── tail 5 … ○
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Prefix:
    """The state after some tokens, to start sequences from; with the scores of the next token where they are known."""

    slot: int
    logits: Tensor | None
    reused: int
    """Tokens that were not computed for it, because a shorter prefix had them."""
    claimed: bool = False
    """Whether its tokens were counted as computed for some sequence."""


@dataclass(slots=True, eq=False)
class Job:
    """A prompt being computed."""

    node: Node
    key: Tokens
    slot: int
    number: int
    reused: int
    snapshot: int
    """Tokens of it after which a state was last kept."""


@dataclass(slots=True, eq=False)
class Node:
    """The end of a prompt, or a place where two part."""

    edge: Tokens
    """The tokens between the parent and here."""
    parent: Node | None
    depth: int
    """Tokens from the root to here."""
    children: dict[int, Node] = field(default_factory=dict)
    """By the first token of their edges."""
    prefix: Prefix | None = None
    expected: int = 0
    """Generations that wait for the state here."""
    jobs: set[Job] = field(default_factory=set)
    """What is being computed and passes here or ends here."""

    @property
    def needed(self) -> bool:
        """Whether something ends here: a state, what waits for one, or what computes one."""
        return self.prefix is not None or self.expected > 0 or any(job.node is self for job in self.jobs)

    def upwards(self) -> Iterator[Node]:
        """The nodes above, nearest first; not the root."""
        node = self.parent
        while node is not None and node.parent is not None:
            yield node
            node = node.parent


class PrefixTree:
    """What is expected and what is kept, by how it begins."""

    def __init__(self) -> None:
        self._root = Node((), None, 0)
        self._kept: OrderedDict[Node, None] = OrderedDict()
        """Nodes with a prefix, the least recently used first."""

    def __len__(self) -> int:
        """Prefixes kept."""
        return len(self._kept)

    # ---- prompts that wait, and those being computed ----

    def expect(self, key: Tokens) -> Node:
        """Note one more generation that waits for the state after `key`; the node stays until `forgo`."""
        node = self.node(key)
        node.expected += 1
        return node

    def forgo(self, node: Node) -> None:
        """One generation less waits at `node`."""
        node.expected -= 1
        self._prune(node)

    def begin(self, job: Job) -> None:
        for node in (job.node, *job.node.upwards()):
            node.jobs.add(job)

    def end(self, job: Job) -> None:
        for node in (job.node, *job.node.upwards()):
            node.jobs.discard(job)
        self._prune(job.node)

    # ---- states ----

    def keep(self, node: Node, prefix: Prefix) -> Prefix | None:
        """Keep a state, as the one most recently used; what it replaces, if anything, is returned."""
        replaced, node.prefix = node.prefix, prefix
        self.used(node)
        return replaced

    def used(self, node: Node) -> None:
        self._kept[node] = None
        self._kept.move_to_end(node)

    def forget(self, node: Node) -> Prefix:
        """Keep the state at `node` no longer; it is returned, for its slot to be closed."""
        prefix, node.prefix = node.prefix, None
        assert prefix is not None
        del self._kept[node]
        self._prune(node)
        return prefix

    def oldest(self, besides: Node | None = None) -> Node | None:
        """The node of the least recently used prefix."""
        return next((node for node in self._kept if node is not besides), None)

    def longest(self, node: Node) -> Node | None:
        """The nearest node above `node` with a state."""
        return next((above for above in node.upwards() if above.prefix is not None), None)

    # ---- the tree ----

    def node(self, key: Tokens) -> Node:
        """The node at the end of `key`, made where there is none: hold it by what it is for, or it is pruned."""
        node = self._root
        while node.depth < len(key):
            child = node.children.get(key[node.depth])
            if child is None:
                child = Node(key[node.depth :], node, len(key))
                node.children[child.edge[0]] = child
                return child
            common = _common(child.edge, key, node.depth)
            node = child if common == len(child.edge) else self._split(child, common)
        return node

    def _split(self, below: Node, length: int) -> Node:
        """A new node on the edge of `below`, `length` tokens from its parent."""
        above = below.parent
        assert above is not None
        middle = Node(below.edge[:length], above, above.depth + length, jobs=set(below.jobs))
        middle.children[below.edge[length]] = below
        above.children[middle.edge[0]] = middle
        below.edge, below.parent = below.edge[length:], middle
        return middle

    def _prune(self, node: Node) -> None:
        """Take away `node` and what is above it as far as nothing ends or parts there."""
        while (parent := node.parent) is not None and not node.needed and len(node.children) < 2:
            if not node.children:
                del parent.children[node.edge[0]]
            else:
                (child,) = node.children.values()
                child.edge, child.parent = node.edge + child.edge, parent
                parent.children[child.edge[0]] = child
            node = parent


def _common(edge: Tokens, key: Sequence[int], start: int) -> int:
    """Tokens that `edge` and `key` from `start` on have in common."""
    part = key[start : start + len(edge)]
    if part == edge:
        return len(edge)
    return next((place for place, (one, other) in enumerate(zip(edge, part)) if one != other), len(part))
