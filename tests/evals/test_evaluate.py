from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from eval_backend import EVEN, PretendModel
from eval_cases import RSA, SHAPES, model_for, read, run, specification

from openzaya.backends.protocol import BackendError, ChatParams, Delta
from openzaya.evals import EvalError, Report, evaluate
from openzaya.evals.questions import questions_of
from openzaya.mrsa.prompts import bundled_prompts, question_text


def test_all_arms_run_on_the_same_problems_and_every_generated_token_is_counted() -> None:
    spec = specification()
    model = model_for(spec, fails=0.1)
    report = run(spec, main=model)
    assert [arm.name for arm in report.arms] == [
        "single",
        "greedy",
        "majority",
        "mrsa",
        "mrsa, shuffled tails",
        "mrsa, empty tails",
    ]
    assert {row.problems for row in report.rows if row.scope == "pooled"} == {10}
    assert sum(report.row("mrsa", "pooled").finish_reasons.values()) == report.row("mrsa", "pooled").rollouts
    failed = report.row("mrsa", "pooled").finish_reasons["failed"]
    assert failed > 0
    # What the model was asked for is exactly what was counted; round 0 of the controls was not asked for again.
    controls = [report.row(name, "pooled") for name in ("mrsa, shuffled tails", "mrsa, empty tails")]
    shared = 2 * 4 * 10
    pool = report.row("majority", "pooled").rollouts
    asked = (
        pool
        + report.row("greedy", "pooled").rollouts
        + sum(row.rollouts for row in (report.row("mrsa", "pooled"), *controls))
    )
    assert len(model.calls) == asked - shared


def test_tokens_of_failed_and_cut_rollouts_count(tmp_path: Path) -> None:
    spec = specification(arms=[{"mode": "single", "samples": 12, "max_tokens": 30}], out=tmp_path)
    report = run(spec, main=model_for(spec, fails=0.3))
    row = report.row("single", "pooled")
    assert set(row.finish_reasons) == {"failed", "length", "stop"}
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()][1:]
    tokens = Counter()
    for record in records:
        for candidate in record["candidates"]:
            tokens[candidate["finish_reason"]] += candidate["usage"]["completion_tokens"]
    assert tokens["failed"] == 5 * row.finish_reasons["failed"]
    assert tokens["length"] == 30 * row.finish_reasons["length"]
    assert row.generated_tokens == tokens.total()
    assert row.cut_share == row.finish_reasons["length"] / 120


def test_a_reply_cut_before_its_answer_is_wrong() -> None:
    spec = specification(arms=[{"mode": "single", "samples": 2, "max_tokens": 5}])
    report = run(spec, main=model_for(spec, skill=dict.fromkeys(EVEN, 1.0)))
    row = report.row("single", "pooled")
    assert (row.mean.value, row.unanswered_share, row.cut_share) == (0.0, 1.0, 1.0)


def test_single_rollouts_are_not_cut_at_beta_and_candidates_are() -> None:
    spec = specification()
    model = model_for(spec)
    run(spec, main=model)
    limits = Counter(params.max_tokens for _prompt, params in model.calls)
    assert set(limits) == {None, 64}


def test_shuffled_tails_are_another_problems_and_empty_ones_are_empty() -> None:
    spec = specification(arms=[{"mode": "mrsa", "preset": "tiny", "settings": {**RSA, "select": "majority"}}])
    model = model_for(spec)
    run(spec, main=model)
    kinds = Counter(model.kind(prompt)[1] for prompt, _params in model.calls)
    assert kinds == {"plain": 4 * 10, "own": 8 * 10, "other": 8 * 10, "empty": 8 * 10}
    fixed = {len(each.text) + len(bundled_prompts().fixed_text(each.task, 2)) for each in questions_of(spec)}
    assert {len(prompt) for prompt, _params in model.calls if model.kind(prompt)[1] == "empty"} == fixed


def test_every_problem_lends_its_tails_to_one_other_of_its_benchmark() -> None:
    spec = specification(arms=[{"mode": "mrsa", "preset": "tiny", "settings": {**RSA, "select": "majority"}}])
    model = model_for(spec)
    run(spec, main=model)
    texts = list(model.answers)
    lent = {
        (texts.index(model.kind(prompt)[0]), int(tag))
        for prompt, _params in model.calls
        if model.kind(prompt)[1] == "other"
        for tag in re.findall(r"Q(\d\d);", prompt)
    }
    assert len(lent) == 10
    assert {lender for _reader, lender in lent} == set(range(10))
    assert all((reader < 6) == (lender < 6) for reader, lender in lent)


def test_controls_and_own_arm_share_round_0_and_its_seeds() -> None:
    spec = specification(arms=[{"mode": "single", "samples": 4}, SHAPES[-1]])
    model = model_for(spec)
    report = run(spec, main=model)
    for scope in report.scopes:
        rounds = [report.row(name, scope).round_means[0] for name in ("mrsa", "mrsa, shuffled tails")]
        # The single rollouts have the seeds of round 0, and nothing here is long enough to be cut.
        assert rounds == pytest.approx([report.row("single", scope).mean.value] * 2)
    plain = {question.text for question in read(spec)}
    first = Counter((prompt, params.seed, params.max_tokens) for prompt, params in model.calls if prompt in plain)
    assert set(first.values()) == {1}


def test_sampling_that_agrees_with_round_0_is_not_repeated() -> None:
    spec = specification(arms=[{"mode": "single", "samples": 6, "max_tokens": 64}, {**SHAPES[-1], "controls": []}])
    model = model_for(spec)
    report = run(spec, main=model)
    assert report.row("single", "pooled").rollouts == 60
    assert len(model.calls) == report.row("mrsa", "pooled").rollouts + 10 * 2


def test_the_majority_gets_as_many_measured_tokens_as_markovian_rsa_family_by_family() -> None:
    spec = specification()
    report = run(spec, main=model_for(spec, fails=0.02))
    for family in ("arithmetic_chain", "logic_order"):
        mrsa, majority = report.row("mrsa", family), report.row("majority", family)
        single = report.row("single", family)
        rollout = single.generated_tokens / single.rollouts
        wanted = mrsa.generated_tokens / mrsa.problems / rollout
        assert majority.candidates[0] == majority.candidates[1]
        assert wanted <= majority.candidates[0] < wanted + 1
    assert report.row("majority", "macro").candidates[0] <= report.row("majority", "macro").candidates[1]


def test_a_baseline_model_is_held_to_the_tokens_of_the_main_one() -> None:
    arms = [
        *SHAPES,
        {"mode": "single", "model": "baseline", "samples": 5},
        {"mode": "majority", "model": "baseline", "match": "mrsa"},
    ]
    spec = specification(models={"main": {}, "baseline": {}}, arms=arms)
    main = model_for(spec, skill={**EVEN, "own": 0.9})
    baseline = model_for(spec, name="other", thought=20, skill=dict.fromkeys(EVEN, 0.3))
    report = run(spec, main=main, baseline=baseline)
    assert report.row("baseline majority", "pooled").candidates[0] > report.row("majority", "pooled").candidates[1]
    ratio = report.row("baseline majority", "pooled").generated_tokens / report.row("mrsa", "pooled").generated_tokens
    assert 0.8 < ratio < 1.25
    gain = report.comparison("mrsa", "baseline single", "mean", "pooled")
    difference = report.row("mrsa", "pooled").mean.value - report.row("baseline single", "pooled").mean.value
    assert gain.difference.value == pytest.approx(difference)
    assert gain.p_value < 0.01 < gain.difference.low
    assert report.comparison("mrsa", "baseline majority", "selected", "macro").better > 0


def test_an_effect_of_tails_shows_against_shuffled_and_empty_ones() -> None:
    spec = specification(
        problems=[{"family": "arithmetic_chain", "count": 12}],
        arms=[{"mode": "mrsa", "preset": "tiny", "settings": RSA}],
    )
    report = run(spec, main=model_for(spec, skill={**EVEN, "own": 1.0, "plain": 0.3}))
    assert report.row("mrsa", "arithmetic_chain").round_means[2] > 0.9
    for control in ("shuffled", "empty"):
        found = report.comparison("mrsa", f"mrsa, {control} tails", "mean", "arithmetic_chain")
        assert 0.3 < found.difference.low < found.difference.value < found.difference.high < 0.9
        assert found.p_value < 0.01


def test_only_held_out_problems_are_asked_and_scopes_are_families_macro_and_pooled() -> None:
    spec = specification(arms=[SHAPES[1]])
    report = run(spec, main=model_for(spec))
    assert report.scopes == ("arithmetic_chain", "logic_order", "macro", "pooled")
    assert [(entry.name, entry.problems, entry.difficulty) for entry in report.benchmarks] == [
        ("arithmetic_chain", 6, (2, 4)),
        ("logic_order", 4, (1, 4)),
    ]
    means = [report.row("greedy", scope).mean.value for scope in report.scopes]
    assert means[2] == pytest.approx((means[0] + means[1]) / 2)
    assert means[3] == pytest.approx((6 * means[0] + 4 * means[1]) / 10)


def test_greedy_asks_for_temperature_0_once() -> None:
    spec = specification(arms=[SHAPES[1]])
    model = model_for(spec)
    run(spec, main=model)
    assert [params.temperature for _prompt, params in model.calls] == [0.0] * 10


def test_rollouts_in_flight_are_bounded_and_the_bound_is_used() -> None:
    spec = specification(concurrency=7)
    model = model_for(spec)
    run(spec, main=model)
    assert model.open_most == 7


def test_a_source_that_always_fails_is_an_error_and_not_a_score_of_zero() -> None:
    spec = specification(arms=[SHAPES[0]])
    with pytest.raises(BackendError, match=r"no rollout of .* succeeded"):
        run(spec, main=model_for(spec, fails=1.0))


def test_a_problem_that_fails_once_is_tried_again_after_all_others(tmp_path: Path) -> None:
    class FailsOnce(PretendModel):
        """Fails on its third and fourth request, whatever they are."""

        async def _reply(self, prompt: str, params: ChatParams) -> AsyncIterator[Delta]:
            if len(self.calls) in (3, 4):
                raise BackendError("the server is busy", status=503)
            async for delta in super()._reply(prompt, params):
                yield delta

    spec = specification(arms=[SHAPES[1]], concurrency=1)
    model = FailsOnce(model_for(spec).answers)
    assert run(spec, main=model).row("greedy", "pooled").finish_reasons == {"stop": 10}
    prompts = [prompt for prompt, _params in model.calls]
    assert sorted(prompts[-2:]) == sorted(prompts[2:4])
    assert len(prompts) == 12


def test_evaluating_inside_an_event_loop_names_aevaluate() -> None:
    async def inside() -> None:
        evaluate(specification())

    with pytest.raises(RuntimeError, match="await aevaluate"):
        asyncio.run(inside())


def test_one_problem_has_no_other_for_shuffled_tails() -> None:
    spec = specification(problems=[{"family": "arithmetic_chain", "count": 1}], arms=[SHAPES[-1]])
    with pytest.raises(EvalError, match="at least 2 problems"):
        run(spec, main=model_for(spec))


def test_scores_and_tables_are_written_beside_the_report(tmp_path: Path) -> None:
    spec = specification(out=tmp_path)
    report = run(spec, main=model_for(spec))
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    mean = sum(row["arms"]["mrsa"]["mean"] for row in rows) / 10
    assert mean == pytest.approx(report.row("mrsa", "pooled").mean.value)
    table = (tmp_path / "report.md").read_text()
    assert "| mrsa, shuffled tails |" in table
    assert "majority@" in table
    assert "(equal tokens)" in table


def test_questions_are_put_as_solve_puts_them() -> None:
    spec = specification(arms=[SHAPES[0]])
    model = model_for(spec)
    run(spec, main=model)
    asked = {prompt for prompt, _params in model.calls}
    assert asked == {question_text([{"role": "user", "content": question.text}]) for question in read(spec)}
