"""Decide on the fast exact path whether two answers say the same, and count votes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openzaya.grading.normalisation import read


def equivalent(a: str, b: str) -> bool:
    """Whether two answers have one key, or one is what the other stands for when a unit, a percent sign or brackets
    are left unsaid; exact, symmetric, without any tolerance or algebra."""
    first, second = read(a), read(b)
    return first.key == second.key or first.key in second.aliases or second.key in first.aliases


@dataclass(frozen=True, slots=True)
class VoteGroup:
    """Answers that count as one."""

    answer: str
    """As the first member wrote it whose key is the group's."""
    key: str
    members: tuple[int, ...]
    """Positions in the given sequence, ascending."""

    @property
    def votes(self) -> int:
        """How many answers it holds."""
        return len(self.members)


def group_votes(answers: Sequence[str | None]) -> list[VoteGroup]:
    """Put equivalent answers together: the largest group first, ties to the one that was named earliest.

    None is no answer and forms no group. What an answer may stand for is not transitive (50% is 50 and 0.5), so an
    answer with aliases joins the largest group that holds one of them as it is written, and no groups are chained.
    """
    by_key: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None and answer.strip():
            by_key.setdefault(read(answer).key, []).append(index)
    aliases = {key: read(answers[members[0]] or "").aliases for key, members in by_key.items()}
    anchors = {key for key in by_key if not any(alias in by_key for alias in aliases[key])}
    groups = {key: list(by_key[key]) for key in by_key if key in anchors}
    for key in (key for key in by_key if key not in anchors):
        homes = [alias for alias in aliases[key] if alias in anchors]
        home = min(homes, key=lambda alias: (-len(by_key[alias]), by_key[alias][0])) if homes else key
        groups.setdefault(home, []).extend(by_key[key])
    found = [VoteGroup(answers[by_key[key][0]] or "", key, tuple(sorted(members))) for key, members in groups.items()]
    return sorted(found, key=lambda group: (-group.votes, group.members[0]))
