"""The file of results: what resuming, sharing and killing leave in it, and whose results are refused."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from eval_cases import SHAPES, model_for, run, specification, without_date

from openzaya.evals import EvalError, evaluate
from openzaya.evals.records import Header, Result, Results


def records(data: bytes) -> list[tuple[Any, ...]]:
    """The candidates of every result without their times, in a fixed order."""
    found = []
    for line in data.splitlines()[1:]:
        record = json.loads(line)
        for candidate in record["candidates"]:
            del candidate["started"], candidate["seconds"]
            found.append((record["arm"], record["problem"], candidate["round"], candidate["index"], str(candidate)))
    return sorted(found)


def test_a_run_resumed_at_every_boundary_gives_the_same_report_and_repeats_nothing(tmp_path: Path) -> None:
    spec = specification(out=tmp_path / "whole", problems=[{"family": "arithmetic_chain", "count": 3}])
    whole = without_date(run(spec, main=model_for(spec, fails=0.1)))
    data = (tmp_path / "whole" / "results.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    assert len(lines) == 1 + 3 * (3 + 2) + 3
    for kept in range(len(lines) + 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        torn = b"" if kept == len(lines) else lines[kept][: len(lines[kept]) // 2]
        (folder / "results.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        model = model_for(spec, fails=0.1)
        again = specification(out=folder, problems=[{"family": "arithmetic_chain", "count": 3}])
        assert without_date(run(again, main=model)) == whole
        assert records((folder / "results.jsonl").read_bytes()) == records(data)
        if kept == len(lines):
            assert model.calls == []


def test_processes_share_a_folder_by_benchmark_and_the_report_is_that_of_one(tmp_path: Path) -> None:
    whole = without_date(run(specification(), main=model_for(specification())))
    spec = specification(out=tmp_path)
    for benchmark in ("logic_order", "arithmetic_chain"):
        part = evaluate(spec, backends={"main": model_for(spec)}, only=[benchmark])
        assert {row.scope for row in part.rows} == {benchmark}
        assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    idle = model_for(spec)
    assert without_date(run(spec, main=idle)) == whole
    assert idle.calls == []
    with pytest.raises(EvalError, match="'arithmetic' is not in the evaluation; it has arithmetic_chain, logic_order"):
        evaluate(spec, backends={"main": idle}, only=["arithmetic"])


def test_processes_may_open_and_fill_a_new_folder_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = Header(digest="d", models={})
    read = Results._read

    def read_slowly(results: Results, path: Path) -> int:
        kept = read(results, path)
        time.sleep(0.01)
        return kept

    monkeypatch.setattr(Results, "_read", read_slowly)
    together = Barrier(8)

    def work(number: int) -> None:
        # A lock of a file holds between descriptors, of one process as of several.
        together.wait()
        results = Results(tmp_path / "results.jsonl", header)
        for problem in range(20):
            results.add(Result(arm="single", problem=f"{number}/{problem}", candidates=()))
        results.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_bytes().splitlines()]
    assert [line["kind"] for line in lines] == ["header"] + ["result"] * 160
    assert len({line["problem"] for line in lines[1:]}) == 160
    again = Results(tmp_path / "results.jsonl", header)
    assert len(again) == 160
    again.close()


def test_what_was_finished_is_kept_when_a_run_dies(tmp_path: Path) -> None:
    spec = specification(out=tmp_path, concurrency=4)
    with pytest.raises(KeyError, match="killed"):
        run(spec, main=model_for(spec, die_after=60))
    kept = len((tmp_path / "results.jsonl").read_text().splitlines())
    assert kept > 2
    model, undisturbed = model_for(spec), model_for(spec)
    assert without_date(run(spec, main=model)) == without_date(run(specification(), main=undisturbed))
    assert 0 < len(model.calls) < len(undisturbed.calls)


def test_results_of_another_evaluation_or_model_are_refused_in_one_sentence(tmp_path: Path) -> None:
    small = {"arms": [SHAPES[0]], "out": tmp_path}
    spec = specification(**small)
    run(spec, main=model_for(spec))
    other = specification(**small, seed=1)
    with pytest.raises(EvalError, match=r"another evaluation \(seed differ\)"):
        run(other, main=model_for(other))
    with pytest.raises(EvalError, match="another model as 'main'"):
        run(spec, main=model_for(spec, name="other"))
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(EvalError, match="have version 2 and this program writes 1; give a new folder"):
        run(spec, main=model_for(spec))
    path.write_text("something else\n")
    with pytest.raises(EvalError, match="line 1 of"):
        run(spec, main=model_for(spec))


def test_the_budget_of_a_run_may_change_on_resuming(tmp_path: Path) -> None:
    small = {"arms": [SHAPES[0]], "out": tmp_path}
    spec = specification(**small)
    run(spec, main=model_for(spec))
    model = model_for(spec)
    run(specification(**small, concurrency=3, resamples=300), main=model)
    assert model.calls == []


def test_text_is_kept_only_when_asked_for_and_tails_where_a_control_reads_them(tmp_path: Path) -> None:
    spec = specification(out=tmp_path / "lean")
    run(spec, main=model_for(spec))
    rich = specification(out=tmp_path / "rich", keep_text=True)
    run(rich, main=model_for(rich))
    lean = [json.loads(line) for line in (tmp_path / "lean" / "results.jsonl").read_text().splitlines()[1:]]
    full = [json.loads(line) for line in (tmp_path / "rich" / "results.jsonl").read_text().splitlines()[1:]]
    assert {record["arm"] for record in lean for each in record["candidates"] if "tail" in each} == {"mrsa"}
    assert not any("reasoning" in each or "content" in each for record in lean for each in record["candidates"])
    assert all("content" in each for record in full for each in record["candidates"])
