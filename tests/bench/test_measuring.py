"""Measuring itself, on models so small that only the arithmetic of the figures can be looked at."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from bench_shapes import SMALL
from openzaya.bench import decode, rollouts, subject
from openzaya.bench.record import machine, record, save
from openzaya.bench.subject import experts_read, open_subject, routed, timed_stages
from openzaya.bench.synthetic import random_container, random_model
from openzaya.engine.core.library import STAGES
from openzaya.engine.core.products import CoreUnavailable, supported_variants
from openzaya.engine.executor import PromptChunk, StepBatch
from openzaya.model.checkpoint import load_model
from openzaya.model.quantised.scheme import W8
from openzaya.model.router import Routing


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch):
    monkeypatch.setattr(subject, "PROBE_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        supported_variants()
    except CoreUnavailable as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("bench") / "w8"
    random_container(path, SMALL, W8)
    return path


def quick(**fields):
    return decode.Settings(rows=(1, 3), prompt=40, repeats=2, seconds=0.0, **fields)


def test_figures_of_decoding_follow_from_one_another(folder):
    told = []
    with open_subject(folder, threads=1) as measured:
        report = decode.measure_decode(measured, quick(contexts=(70,), competing=1), lambda *step: told.append(step))
        total = measured.weights.total(SMALL)
    assert [(row["rows"], row["context"]) for row in report["decode"]] == [(1, 40), (3, 40), (1, 70)]
    one, three, long = report["decode"]
    assert one["ratio_to_one_row"] == {"median": 1, "low": 1, "high": 1}
    assert one["experts_a_step"]["read"] <= 3 < three["experts_a_step"]["read"] <= 9
    assert one["bytes_a_step"]["total"] < three["bytes_a_step"]["total"] < total + 10**6
    # Two vectors a head and layer for each token, float16.
    assert long["bytes_a_step"]["keys_and_values"] == 70 * 3 * 2 * 2 * 16 * 2
    read = one["tokens_a_second"]["median"] * one["bytes_a_step"]["total"]
    share = one["share_of_bandwidth"]["median"] * report["probe"]["gigabytes_a_second"]["median"] * 1e9
    assert share == pytest.approx(read, rel=0.9), "the same but for the spread of the probe"
    assert all(row["competing"]["ratio_to_quiet"]["median"] > 0 for row in report["decode"])
    assert all(list(row["milliseconds_by_stage"]) == list(STAGES) for row in report["decode"])
    assert report["prefill"]["tokens_a_second"]["median"] > 0
    assert told[0][1] == told[-1][0] == 2 * (4 + 3 + 1 + 3)
    json.dumps(report)


def test_the_torch_executor_is_measured_by_the_same_cases():
    model = random_model(SMALL.with_(dtype="float32"))
    with open_subject(model, threads=1) as measured:
        report = decode.measure_decode(measured, quick())
        assert measured.facts["executor"] == "torch"
    assert report["decode"][1]["experts_a_step"]["read"] > 3
    assert report["decode"][0]["bytes_a_step"]["attention"] == 3 * 64 * 4 * (64 + 2 * 32 + 64)


def test_the_time_of_each_part_of_a_step_adds_up_to_no_more_than_the_step(folder):
    with open_subject(folder, threads=1) as measured:
        pool = measured.pool(128, 1)
        slot = pool.open()
        assert pool.reserve(slot, 100)
        executor = measured.executor(pool)
        with timed_stages(executor) as spent:
            began = time.perf_counter()
            for _ in range(3):
                executor.step(StepBatch(chunks=[PromptChunk(slot, list(range(30)), True)]))
            took = time.perf_counter() - began
        assert executor.stage_seconds is None
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) < took


def test_a_context_beyond_the_model_is_refused_by_name(folder):
    with open_subject(folder, threads=1) as measured, pytest.raises(ValueError, match="context of 256"):
        decode.measure_decode(measured, quick(contexts=(250,)))


@pytest.mark.parametrize(
    "wrong", [{"rows": ()}, {"rows": (0,)}, {"contexts": (-1,)}, {"repeats": 0}, {"competing": -1}]
)
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        decode.Settings(**wrong)


def test_the_experts_that_a_step_reads_are_counted_by_layer_without_those_who_skip():
    step = np.array([[0, 0, 1], [4, 4, 4], [2, 4, 2]])
    assert experts_read([step], experts=4) == 3
    assert experts_read([step, np.zeros((3, 3), dtype=int)], experts=4) == 3


def test_the_core_tells_the_classes_that_the_model_chooses(folder):
    ids = torch.randint(0, SMALL.vocab_size, (60,), generator=torch.Generator().manual_seed(0))
    with open_subject(folder, threads=1) as measured:
        pool = measured.pool(128, 2)
        slot = pool.open()
        assert pool.reserve(slot, 60)
        executor = measured.executor(pool)
        with routed(executor) as steps:
            executor.step(StepBatch(chunks=[PromptChunk(slot, ids.tolist(), True)]))
        assert executor.routing is None
    routing = Routing()
    with torch.inference_mode():
        load_model(folder, dtype="float32").hidden(ids[None], routing=routing)
    expected = np.stack([chosen.numpy().reshape(-1) for chosen in routing.chosen])
    assert steps[0].shape == expected.shape == (3, 60)
    # Activations of eight bits move a few tokens over the edge of two nearly equal classes.
    assert (steps[0] == expected).mean() > 0.9


def test_sharing_is_measured_and_saves_tokens(folder):
    settings = rollouts.Settings(
        rollouts=4, prompt=100, candidates=6, tails=3, question=35, tail=33, repeats=1, solve=False
    )
    with open_subject(folder, threads=1) as measured:
        bench = rollouts.Bench(measured, settings)
        scheduler, computed = bench._scheduler, []
        step = scheduler.executor.step

        def counted(batch):
            computed.append(sum(len(chunk.ids) for chunk in batch.chunks))
            return step(batch)

        scheduler.executor.step = counted

        def tokens(run):
            computed.clear()
            run()
            return sum(computed)

        assert tokens(bench.rollouts) == 100
        assert tokens(bench.independent) == 100
        assert tokens(bench.plain_round) == 6 * settings.aggregation
        assert tokens(bench.sharing_round) == bench.tokens_sharing < 6 * settings.aggregation
        scheduler.executor.step = step
        report = rollouts.measure_rollouts(measured, settings)
    assert report["rollouts"]["times_faster"]["median"] > 0
    assert report["aggregation"]["tokens_computed"] == {"sharing": bench.tokens_sharing, "without": 6 * 150}
    assert "solve" not in report


def test_a_record_has_what_repeats_it_and_is_written_whole(tmp_path):
    report = record("decode", ["openzaya", "bench", "decode", "a b"], {"x": 1, "machine": machine()})
    assert report["command"] == "openzaya bench decode 'a b'"
    assert {"commit", "date", "machine", "x"} <= report.keys()
    assert report["machine"]["cores"] >= 1
    save(report, tmp_path / "new" / "figures.json")
    assert json.loads((tmp_path / "new" / "figures.json").read_text()) == report
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figures.json"]
