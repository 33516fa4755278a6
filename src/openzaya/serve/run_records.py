"""A run as its page reads it: the records of its journal, with what a page cannot work out by itself.

The page draws from these records alone, whether they come one by one from a run at work or all at once from a journal.
Needs nothing of the service, so that a journal can be drawn where no service is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from openzaya.grading import equivalent
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.course import MrsaError, retell
from openzaya.mrsa.journal import End, Entry, Header, Journal
from openzaya.mrsa.solution import Solution

Record = dict[str, Any]


class RecordWriter:
    """Makes the records of one run from its journal's entries, taken in order.

    Every rollout with an answer gets a `group`: the number of that answer among the different ones of the run in the
    order in which they appeared, equivalent answers once. A page gives each number a colour that stays.
    """

    def __init__(self, *, whole: bool) -> None:
        """`whole` keeps the reasoning of the rollouts; without it they have its length alone."""
        self._whole = whole
        self._answers: list[str] = []

    def record(self, entry: Entry, solution: Solution | None = None) -> Record:
        """The record of an entry; the end of a run needs its solution."""
        if isinstance(entry, Header):
            return {"kind": "header", **asdict(entry)}
        if isinstance(entry, Candidate):
            return self.rollout(entry)
        return {**_ending(entry), **(self._result(solution) if solution is not None else {})}

    def rollout(self, candidate: Candidate) -> Record:
        values = {"kind": "rollout", **candidate.as_json(), "group": self._group(candidate.answer)}
        if not self._whole:
            values["reasoning_characters"] = len(values.pop("reasoning"))
        return values

    def _result(self, solution: Solution) -> Record:
        chosen = solution.chosen
        return {
            "answer": solution.answer,
            "group": self._group(solution.answer),
            "text": solution.text,
            "chosen": None if chosen is None else [chosen.round, chosen.index],
            "usage": asdict(solution.usage),
            "exactness": solution.exactness,
        }

    def _group(self, answer: str | None) -> int | None:
        if answer is None or not answer.strip():
            return None
        for number, known in enumerate(self._answers):
            if known == answer or equivalent(known, answer):
                return number
        self._answers.append(answer)
        return len(self._answers) - 1


async def records_of(journal: Journal, *, whole: bool) -> list[Record]:
    """All records of a kept run. One whose journal stops early, or lacks rollouts, has no end among them."""
    writer = RecordWriter(whole=whole)
    entries: Sequence[Entry] = (journal.header, *journal.attempts)
    records = [writer.record(entry) for entry in entries]
    if journal.end is None:
        return records
    try:
        solution = await retell(journal, None, None)
    except MrsaError:
        return records
    return [*records, writer.record(journal.end, solution)]


def _ending(end: End) -> Record:
    return {"kind": "end", "finish_reason": end.finish_reason, "seconds": end.seconds}
