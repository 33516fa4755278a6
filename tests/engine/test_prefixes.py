from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openzaya.engine.prefixes import Node, Prefix, PrefixTree

KEYS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
ACTIONS = st.lists(st.tuples(st.sampled_from(["expect", "forgo", "keep", "forget", "use"]), KEYS), max_size=40)


def nodes_of(tree: PrefixTree) -> dict[tuple[int, ...], Node]:
    """Every node by its whole beginning, the links between them checked."""
    found = {}

    def visit(node: Node, beginning: tuple[int, ...]) -> None:
        for first, child in node.children.items():
            assert child.parent is node
            assert child.edge[0] == first
            assert child.depth == node.depth + len(child.edge)
            found[beginning + child.edge] = child
            visit(child, beginning + child.edge)

    visit(tree._root, ())
    return found


def partings(keys: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Beginnings after which two of the keys go on differently."""
    following = {(key[:length], key[length]) for key in keys for length in range(1, len(key))}
    return {beginning for beginning, _ in following if sum(one == beginning for one, _ in following) > 1}


@given(ACTIONS)
def test_the_tree_has_a_node_exactly_where_a_prompt_ends_and_where_two_part(actions: list) -> None:
    tree = PrefixTree()
    waiting: dict[tuple[int, ...], list[Node]] = {}
    kept: dict[tuple[int, ...], Node] = {}
    for action, key in actions:
        if action == "expect":
            waiting.setdefault(key, []).append(tree.expect(key))
        elif action == "forgo" and key in waiting:
            tree.forgo(waiting[key].pop())
            waiting = {one: nodes for one, nodes in waiting.items() if nodes}
        elif action == "keep":
            node = kept.pop(key, None) or tree.node(key)
            tree.keep(node, Prefix(len(key), None, 0))
            kept[key] = node
        elif action == "forget" and key in kept:
            assert tree.forget(kept.pop(key)).slot == len(key)
        elif action == "use" and key in kept:
            tree.used(kept[key])
            kept[key] = kept.pop(key)

        known = {*waiting, *kept}
        found = nodes_of(tree)
        assert set(found) == known | partings(known)
        assert len(tree) == len(kept)
        assert tree.oldest() is next(iter(kept.values()), None)
        assert tree.oldest(besides=tree.oldest()) is next(iter(list(kept.values())[1:]), None)
        for one, node in found.items():
            assert [above.depth for above in node.upwards()] == sorted(
                (len(other) for other in found if len(other) < len(one) and one[: len(other)] == other), reverse=True
            )
            longest = max((k for k in kept if len(k) < len(one) and one[: len(k)] == k), key=len, default=None)
            assert tree.longest(node) is (None if longest is None else kept[longest])
