"""The scripts that measure other programs: what they read from their output, and the file they give llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from openzaya.model.config import NAMED_SHAPES

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = script("compare")
random_gguf = script("random_gguf")
run_llama = script("run_llama")
run_transformers = script("run_transformers")


def openzaya_report(one: float, many: float, deep: float, prompt: float) -> dict[str, Any]:
    def rate(value: float) -> dict[str, float]:
        return {"median": value, "low": value, "high": value}

    cases = [(1, 480, one), (16, 480, many), (1, 8160, deep)]
    decode = [{"rows": rows, "context": context, "tokens_a_second": rate(value)} for rows, context, value in cases]
    return {"decode": decode, "prefill": {"tokens": 480, "tokens_a_second": rate(prompt)}}


def peer_report(one: float, many: float, deep: float, prompt: float) -> dict[str, Any]:
    return {
        "peer": "llama.cpp", "settings": {"prompt": 480}, "rows": {"1": one, "16": many}, "contexts": {"8160": deep},
        "prefill": {"480": prompt},
    }  # fmt: skip


# ---- compare.py ----


def test_both_reports_name_their_figures_alike() -> None:
    ours = compare.rates_of_openzaya(openzaya_report(50, 100, 25, 400))
    theirs = compare.rates_of_peer(peer_report(50, 100, 25, 400))
    assert ours == theirs
    assert sorted(ours.values()) == [25, 50, 100, 400]


def test_a_ratio_is_of_the_medians_and_its_spread_within_the_rounds() -> None:
    found = compare.ratios([{"a": 10.0}, {"a": 30.0}, {"a": 20.0}], [{"a": 5.0}, {"a": 10.0}, {"a": 20.0}])
    assert found == {
        "a": {
            "ours": {"median": 20, "low": 10, "high": 30},
            "theirs": {"median": 10, "low": 5, "high": 20},
            "ratio": {"median": 2, "low": 1, "high": 3},
        }
    }


def test_figures_of_different_prompts_are_not_compared() -> None:
    ours = compare.rates_of_openzaya(openzaya_report(50, 100, 25, 400))
    with pytest.raises(ValueError, match="the same --prompt"):
        compare.ratios([ours], [{"decode, rows 1, context 512": 40.0}])


def test_sides_take_turns_and_every_round_is_kept(tmp_path: Path) -> None:
    turns = tmp_path / "turns"

    def side(name: str, report: dict[str, Any]) -> str:
        program = tmp_path / f"{name}.py"
        program.write_text(
            f"open({str(turns)!r}, 'a').write({name!r} + ' ')\nprint({json.dumps(report)!r})\n", encoding="utf-8"
        )
        return f"{sys.executable} {program}"

    rounds = []
    for report in compare.compare(
        side("ours", openzaya_report(50, 100, 25, 400)), side("theirs", peer_report(40, 50, 10, 100)), 3
    ):
        rounds.append(report["rounds"])
    assert rounds == [1, 2, 3]
    assert turns.read_text(encoding="utf-8").split() == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert {name: figure["ratio"]["median"] for name, figure in report["figures"].items()} == {
        "prefill, tokens 480": 4, "decode, rows 1, context 480": 1.25, "decode, rows 16, context 480": 2,
        "decode, rows 1, context 8160": 2.5,
    }  # fmt: skip
    assert [len(reports) for reports in report["reports"].values()] == [3, 3]


def test_a_report_made_before_stands_for_a_command(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    ours.write_text(json.dumps(openzaya_report(50, 100, 25, 400)), encoding="utf-8")
    theirs.write_text(json.dumps(peer_report(50, 100, 25, 400)), encoding="utf-8")
    *_, report = compare.compare(str(ours), str(theirs), 2)
    assert {figure["ratio"]["median"] for figure in report["figures"].values()} == {1}


@pytest.mark.parametrize(("program", "said"), [("raise SystemExit(3)", "exit status 3"), ("print('none')", "no JSON")])
def test_a_side_that_fails_ends_the_comparison(program: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare.report_of(f'{sys.executable} -c "{program}"')


# ---- run_llama.py ----

BATCHED = """
{"n_kv_max": 49152, "pp": 480, "tg": 32, "pl": 1, "n_kv": 512, "t_pp": 3.9, "speed_pp": 123.0, "speed_tg": 45.5}
{"n_kv_max": 49152, "pp": 480, "tg": 32, "pl": 16, "n_kv": 992, "t_pp": 3.9, "speed_pp": 123.0, "speed_tg": 96.25}

llama_perf_context_print:        load time =     100.00 ms
"""


def test_rates_of_rows_are_those_of_decoding() -> None:
    assert run_llama.rates_of_rows(BATCHED, [1, 16]) == {"1": 45.5, "16": 96.25}


def test_a_number_of_rows_that_was_left_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[64\]"):
        run_llama.rates_of_rows(BATCHED, [1, 64])


def test_one_test_of_llama_bench_is_read() -> None:
    line = json.dumps({"n_prompt": 480, "n_gen": 0, "avg_ns": 1, "avg_ts": 130.5, "samples_ts": [130.5]})
    assert run_llama.rate_of_test(line + "\n") == 130.5
    with pytest.raises(ValueError, match="2 tests instead of one"):
        run_llama.rate_of_test(f"{line}\n{line}\n")


def test_the_faster_setting_counts_for_each_figure() -> None:
    off = {"rows": {"1": 50.0}, "contexts": {"8160": 16.0}, "prefill": {"480": 120.0}}
    on = {"rows": {"1": 48.0}, "contexts": {"8160": 12.0}, "prefill": {"480": 130.0}}
    assert run_llama.fastest([off, on]) == {
        "rows": {"1": 50.0}, "contexts": {"8160": 16.0}, "prefill": {"480": 130.0}
    }  # fmt: skip


# ---- run_transformers.py ----


def test_the_whole_model_lies_on_the_line_through_two_smaller_ones() -> None:
    timed = {4: {"1": 0.1, "prefill": 1.0}, 12: {"1": 0.14, "prefill": 2.6}}
    assert run_transformers.at_layers(timed, 40) == pytest.approx({"1": 0.28, "prefill": 8.2})
    assert run_transformers.at_layers({40: {"1": 0.2}}, 40) == {"1": 0.2}
    assert run_transformers.rates({"1": 0.25, "16": 0.5, "prefill": 2.0}, 480) == {"1": 4, "16": 32, "prefill": 240}
    with pytest.raises(ValueError, match="quiet machine"):
        run_transformers.at_layers({4: {"1": 0.2}, 12: {"1": 0.1}}, 40)


# ---- random_gguf.py ----


def test_the_file_has_the_weights_of_the_8b_but_what_the_architecture_lacks() -> None:
    listed = random_gguf.tensors(NAMED_SHAPES["zaya1-8b"])
    numbers = sum(int(np.prod(tensor.shape)) for tensor in listed)
    assert numbers == pytest.approx(8.8e9, rel=0.01)
    assert sum(tensor.bytes for tensor in listed) == pytest.approx(numbers * 4.5 / 8, rel=0.01)
    assert len({tensor.name for tensor in listed}) == len(listed)


def test_drawn_codes_have_the_deviation_asked_for_and_no_mean() -> None:
    tensor = random_gguf.Tensor("blk.0.attn_q.weight", (64, 2048))
    blocks = random_gguf.drawn(tensor, 0.02, np.random.Generator(np.random.SFC64(0)))
    assert blocks.nbytes == tensor.bytes
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
    weights = scales * codes
    assert codes.min() == -7
    assert codes.max() == 7
    assert abs(weights.mean()) < 3e-4
    assert weights.std() == pytest.approx(0.02, rel=0.01)


def test_a_shape_that_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="moe_intermediate_size is 272"):
        random_gguf.tensors(NAMED_SHAPES["tiny"].with_(moe_intermediate_size=272))


def test_the_written_file_reads_back_with_its_shapes_and_settings(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    config = NAMED_SHAPES["tiny"]
    random_gguf.write_file(tmp_path / "tiny.gguf", config)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    # GGUF names the contiguous axis first.
    found = {
        tensor.name: (tuple(int(size) for size in tensor.shape[::-1]), tensor.n_bytes) for tensor in reader.tensors
    }
    assert found == {tensor.name: (tensor.shape, tensor.bytes) for tensor in random_gguf.tensors(config)}
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"Q4_0", "F32"}
    assert reader.get_field("general.architecture").contents() == "qwen3moe"
    for key, value in random_gguf.metadata(config).items():
        assert reader.get_field(f"qwen3moe.{key}").contents() == pytest.approx(value)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"]
