from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scripted_backend import Script, ScriptedBackend, always, by_seed

from openzaya.backends.protocol import Usage
from openzaya.mrsa import JournalError, JsonLinesSink, MrsaError, Solution, make_config, replay, run
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.journal import End, Header
from openzaya.mrsa.tails import Tail

QUESTION = "Compute 17 + 25."


def settings(**values: object):
    small = {"candidates": 3, "tails": 2, "rounds": 2, "beta": 60, "tau": 20, "final_tokens": 90, "task": "math"}
    return make_config({**small, **values})


def failing_by_seed(messages, params) -> Script:
    script = by_seed(["1", "2", "3"])(messages, params)
    is_rollout = params.temperature == 1.0
    return dataclasses.replace(script, fails_after=1) if is_rollout and params.seed % 3 == 0 else script


def solve(backend: ScriptedBackend, path: Path, config=None, problem: str = QUESTION) -> Solution:
    async def go() -> Solution:
        sink = JsonLinesSink(path, fsync="never")
        try:
            return await run(problem, config or settings(), backend, sink=sink)
        finally:
            await sink.aclose()

    return asyncio.run(go())


def retold(path: Path) -> Solution:
    return asyncio.run(replay(JsonLinesSink(path)))


def substance(solution: Solution) -> dict:
    """A Solution without its times and the name of its journal."""

    def timeless(candidate: Candidate) -> Candidate:
        return dataclasses.replace(candidate, started=0.0, seconds=0.0)

    values = solution.as_json()
    for summary in values["rounds"]:
        summary.pop("seconds")
    values.pop("seconds")
    values.pop("journal")
    values["candidates"] = [[timeless(candidate) for candidate in round] for round in solution.candidates]
    values["final"] = solution.final and timeless(solution.final)
    return values


@pytest.mark.parametrize("more", [{}, {"tails": 1}, {"select": "final"}, {"select": "majority"}], ids=str)
def test_a_lean_run_comes_to_the_same_and_holds_no_text_that_nothing_reads(tmp_path: Path, more) -> None:
    async def go(lean: bool) -> Solution:
        sink = JsonLinesSink(tmp_path / f"{lean}.jsonl", fsync="never")
        writer = ScriptedBackend(by_seed(["1", "2", "3"]))
        try:
            return await run(QUESTION, settings(**more), writer, sink=sink, lean=lean)
        finally:
            await sink.aclose()

    whole, lean = (asyncio.run(go(lean)) for lean in (False, True))
    assert {**substance(lean), "candidates": None} == {**substance(whole), "candidates": None}
    assert any(candidate.reasoning for round in whole.candidates for candidate in round)
    assert not any(candidate.reasoning for round in lean.candidates for candidate in round)
    assert not any(candidate.content for round in lean.candidates[:-1] for candidate in round)
    assert substance(retold(tmp_path / "True.jsonl")) == substance(whole)


@pytest.mark.parametrize("writer", [by_seed(["1", "2", "3"]), failing_by_seed], ids=["well", "failing"])
@pytest.mark.parametrize("more", [{}, {"tails": 1}, {"select": "final"}, {"seed": 4}], ids=str)
def test_killed_at_every_record_and_resumed_a_run_gives_the_same_solution(tmp_path: Path, writer, more) -> None:
    whole = tmp_path / "whole.jsonl"
    backend = ScriptedBackend(writer)
    expected = solve(backend, whole, settings(**more))
    calls = len(backend.calls)
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        for torn in (b"", lines[kept][:15] if kept < len(lines) else b""):
            path = tmp_path / f"killed-{kept}-{len(torn)}.jsonl"
            path.write_bytes(b"".join(lines[:kept]) + torn)
            again = ScriptedBackend(writer)
            solution = solve(again, path, settings(**more))
            assert substance(solution) == substance(expected)
            rollouts_kept = max(0, min(kept, calls + 1) - 1)
            assert len(again.calls) == calls - rollouts_kept
            assert substance(retold(path)) == substance(expected)


def test_a_replay_gives_the_same_solution_without_a_backend(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    expected = solve(ScriptedBackend(by_seed(["1", "2", "3"])), path)
    assert retold(path) == expected


def test_a_finished_run_is_only_retold_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    expected = solve(ScriptedBackend(by_seed(["1", "2", "3"])), path)
    before = path.read_bytes()
    backend = ScriptedBackend(by_seed(["1", "2", "3"]))
    assert solve(backend, path) == expected
    assert backend.calls == []
    assert path.read_bytes() == before


def test_a_run_that_a_deadline_ended_is_replayed_as_it_ended_and_resumed_to_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def stalling(messages, params) -> Script:
        script = Script(reasoning="thought", content="\\boxed{1}")
        return script if len(backend.calls) <= 4 else dataclasses.replace(script, stalls_after=1)

    backend = ScriptedBackend(stalling)
    ended = solve(backend, path, settings(deadline=1.5))
    assert ended.finish_reason == "deadline"
    assert retold(path) == ended
    again = ScriptedBackend(always(Script(reasoning="thought", content="\\boxed{1}")))
    solution = solve(again, path, settings())
    assert (solution.finish_reason, solution.answer) == ("answered", "1")
    assert len(again.calls) == 9 - 4
    assert solution.usage.completion_tokens > sum(summary.completion_tokens for summary in solution.rounds)
    assert substance(retold(path)) == substance(solution)


def test_resuming_with_the_same_spent_budget_generates_nothing_and_ends_alike(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = settings(max_total_tokens=150)
    writer = by_seed(["1", "2"], reasoning="on and on {seed} ")
    ended = solve(ScriptedBackend(writer), path, config)
    assert ended.finish_reason == "budget"
    again = ScriptedBackend(writer)
    assert substance(solve(again, path, config)) == substance(ended)
    assert again.calls == []
    assert solve(ScriptedBackend(writer), path, settings()).finish_reason == "answered"


def test_a_round_that_collapsed_is_tried_again_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def dying(messages, params) -> Script:
        return Script(content="\\boxed{1}", fails_after=0 if len(backend.calls) > 3 else None)

    backend = ScriptedBackend(dying)
    with pytest.raises(MrsaError, match="round 1"):
        solve(backend, path)
    with pytest.raises(MrsaError, match="stops before the end"):
        retold(path)
    again = ScriptedBackend(always(Script(content="\\boxed{1}")))
    assert solve(again, path).answer == "1"
    assert len(again.calls) == 6


def test_a_journal_of_another_question_other_settings_or_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    solve(ScriptedBackend(always(Script(content="\\boxed{1}"))), path)
    backend = ScriptedBackend(always(Script(content="\\boxed{1}")))
    with pytest.raises(JournalError, match=r"run\.jsonl answers another question"):
        solve(backend, path, problem="Compute 1 + 1.")
    with pytest.raises(JournalError, match=r"other settings \(tau\)"):
        solve(backend, path, settings(tau=10, deadline=9.0))
    with pytest.raises(JournalError, match="by the model 'scripted', not 'other'"):
        solve(ScriptedBackend(always(Script()), model="other"), path)
    assert backend.calls == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "rollout"}\n', "line 1 of"),
        ("not json\n", "line 1 of"),
        ('{"kind": "end", "finish_reason": "answered", "seconds": 1}\n', "must begin with its only header"),
        ('{"kind": "header", "version": 99}\n', "has version 99"),
        ("[1]\n", "line 1 of"),
    ],
)
def test_a_damaged_journal_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError) as caught:
        solve(ScriptedBackend(always(Script())), path)
    assert message in str(caught.value)
    assert path.read_text() == text


def test_a_journal_that_cannot_be_written_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = ScriptedBackend(always(Script(content="x")))
    with pytest.raises(JournalError, match="the journal"):
        solve(backend, tmp_path / "file" / "run.jsonl")
    assert backend.calls == []


def test_each_record_is_one_line_with_everything_of_its_rollout(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "run.jsonl"
    solution = solve(ScriptedBackend(by_seed(["1", "2"], reasoning="line\n\u2028{seed}\n")), path)
    records = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert [records[0]["kind"], records[-1]["kind"]] == ["header", "end"]
    assert records[0]["messages"] == [{"role": "user", "content": QUESTION}]
    assert records[0]["model"] == "scripted"
    rollouts = [record for record in records if record["kind"] == "rollout"]
    assert len(rollouts) == 9 + (solution.final is not None)
    for record in rollouts:
        assert {"round", "index", "tails_read", "seed", "finish_reason", "usage", "started", "seconds"} <= set(record)
        assert {"tail", "reasoning", "content", "answer", "failure"} <= set(record)


@examples(max_examples=40)
@given(
    st.builds(
        Candidate,
        round=st.integers(0, 9),
        index=st.integers(0, 99),
        seed=st.integers(0, 2**63 - 1),
        tails_read=st.lists(st.integers(0, 9), max_size=4).map(tuple),
        finish_reason=st.sampled_from(["stop", "length", "cut", "failed", "budget"]),
        usage=st.builds(Usage, prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9)),
        started=st.floats(0, 100),
        seconds=st.floats(0, 100),
        tail=st.none() | st.builds(Tail, st.text(), st.integers(0, 9), st.sampled_from(["ids", "ratio"])),
        reasoning=st.text(st.characters()),
        content=st.text(st.characters()),
        answer=st.none() | st.text(),
        failure=st.none() | st.text(),
        tool_calls=st.just(()) | st.just(({"name": "f", "arguments": "{}"},)),
    )
)
def test_a_candidate_survives_the_journal_unchanged(tmp_path_factory, candidate: Candidate) -> None:
    path = tmp_path_factory.mktemp("journal") / "run.jsonl"
    header = Header(question_hash="q", config_hash="c", model=None, messages=[], config={}, task="math")

    async def there_and_back():
        sink = JsonLinesSink(path, fsync="never")
        for entry in (header, candidate, End(finish_reason="answered", seconds=1.5)):
            await sink.write(entry)
        await sink.aclose()
        return await JsonLinesSink(path).read()

    journal = asyncio.run(there_and_back())
    assert journal is not None
    assert journal.attempts == (candidate,)
    assert journal.header == header
    assert journal.end == End(finish_reason="answered", seconds=1.5)
