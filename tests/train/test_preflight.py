"""The check before a run: its judgement on made-up figures, its measurements on two ranks of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openzaya.train.launch import Place
from openzaya.train.plan.cluster import Cluster, read_cluster
from openzaya.train.preflight.disks import measure_disk
from openzaya.train.preflight.links import LinkFigures
from openzaya.train.preflight.ranks import DiskFigures, RankFigures
from openzaya.train.preflight.verdict import Problem, judge

REPOSITORY = Path(__file__).parents[2]
DISK = DiskFigures(write=1e9, read=2e9, fsync=0.001, free=10**12, shared=True)


def rank(number: int, **changes: object) -> RankFigures:
    """A healthy rank of a host of two."""
    healthy = RankFigures(
        rank=number, host=f"node{number // 2}", device="MI300X", torch="2.13", matmul=7e14, memory_free=10**11,
        clock_offset=None if number % 2 else 0.0, disk=None if number % 2 else DISK,
    )  # fmt: skip
    return replace(healthy, **changes)  # type: ignore[arg-type]


def found(
    figures: list[RankFigures], links: list[LinkFigures] | None = None, cluster: Cluster | None = None, needed: int = 0
) -> list[tuple[str, str | None, bool]]:
    return [(each.subject, each.host, each.stops) for each in judge(figures, links or [], cluster, needed)]


def test_healthy_machines_have_no_problems() -> None:
    links = [LinkFigures("all-reduce", 8, 0.1, 45e9, expected=50e9)]
    assert found([rank(number) for number in range(8)], links, needed=10**11) == []


def test_a_straggler_is_named_by_its_host() -> None:
    ranks = [rank(number) for number in range(8)]
    ranks[5] = rank(5, matmul=0.8 * 7e14)
    (problem,) = judge(ranks, [], None, 0)
    assert problem == Problem("products", "node2", "rank 5 does 80% of the median rank", stops=True)
    ranks[5] = rank(5, matmul=0.95 * 7e14)
    assert found(ranks) == []


def test_other_software_another_device_and_a_missing_gpu_stop_a_run() -> None:
    assert found([*(rank(number) for number in range(6)), rank(6, torch="2.12"), rank(7, torch="2.12")]) == [
        ("ranks", "node3", True)
    ]
    assert found([*(rank(number) for number in range(7)), rank(7, device="MI250")]) == [("ranks", "node3", True)]
    assert found([rank(number) for number in range(7)]) == [("ranks", "node3", True)]


def test_slow_links_a_folder_apart_a_full_disk_and_a_wrong_clock_are_found() -> None:
    ranks = [rank(number) for number in range(4)]
    slow = [LinkFigures("all-to-all", 4, 0.1, 20e9, expected=50e9), LinkFigures("all-reduce", 4, 0.1, 1e9, None)]
    assert found(ranks, slow) == [("links", None, True)]
    assert found([*ranks[:2], rank(2, disk=replace(DISK, shared=False)), ranks[3]]) == [("disks", "node1", True)]
    assert found(ranks, needed=2 * 10**12) == [("disks", "node0", True), ("disks", "node1", True)]
    assert found([*ranks[:2], rank(2, clock_offset=-2.5), ranks[3]]) == [("clocks", "node1", False)]


def test_what_differs_from_a_description_is_worth_a_look_and_comes_after_what_stops() -> None:
    cluster = read_cluster(REPOSITORY / "recipes" / "clusters" / "mi300x-8.toml")
    ranks = [rank(number, matmul=4e14) for number in range(4)]
    assert found(ranks, cluster=cluster) == [("ranks", None, False), ("products", None, False)]
    ranks[1] = rank(1, matmul=1e14)
    assert found(ranks, cluster=cluster)[0] == ("products", "node0", True)


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    place = Place(rank=0, ranks=1, local_rank=0, local_ranks=1, device=torch.device("cpu"))
    figures = measure_disk(place, tmp_path / "run", 1 << 20)
    assert figures is not None
    assert figures.shared
    assert min(figures.write, figures.read, figures.fsync, figures.free) > 0
    assert list((tmp_path / "run").iterdir()) == []


TWO_RANKS = """
import json, sys, time
from pathlib import Path
import torch
from openzaya.train.preflight import clocks, run

true_time = time.time
class Late:
    perf_counter = time.perf_counter
    @staticmethod
    def time():
        return true_time() + (2.5 if run.os_rank else 0.0)
import os
run.os_rank = int(os.environ["RANK"])
clocks.time = Late
# Two hosts, as far as the check can see.
run.host_name = lambda: f"host{run.os_rank}"
report = run.run_preflight(Path(sys.argv[1]), needed_bytes=1, dtype=torch.float32, device="cpu")
if report.speaks:
    print(json.dumps({
        "offsets": [each.clock_offset for each in report.ranks],
        "hosts": [each.host for each in report.ranks],
        "shared": [each.disk and each.disk.shared for each in report.ranks],
        "links": [(each.what, each.ranks, each.bandwidth) for each in report.links],
        "clocks": [each.sentence for each in report.problems if each.subject == "clocks"],
    }))
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_two_ranks_measure_links_and_clocks_of_each_other(tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS, encoding="utf-8")
    done = torchrun(str(script), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["hosts"] == ["host0", "host1"]
    assert said["offsets"][0] == 0
    assert said["offsets"][1] == pytest.approx(2.5, abs=0.3)
    assert said["clocks"] == [f"the clock is {said['offsets'][1]:.1f} s ahead of rank 0's"]
    assert said["shared"] == [True, None], "one rank of each place in the launch writes"
    assert [(what, ranks) for what, ranks, _ in said["links"]] == [("all-reduce", 2), ("all-to-all", 2)]
    assert all(bandwidth > 0 for _, _, bandwidth in said["links"])
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
def test_the_program_checks_two_ranks_and_its_exit_code_is_the_verdict(tmp_path: Path) -> None:
    recipe = str(REPOSITORY / "recipes" / "tiny" / "zaya1-tiny.toml")
    done = torchrun("-m", "openzaya", "train", recipe, "--out", str(tmp_path / "run"), "--preflight", "--json")
    report = json.loads(done.stdout)
    assert len(report["ranks"]) == 2
    assert done.returncode == (1 if report["stops"] else 0)  # torchrun's own code for a failed rank
    assert report["needed_bytes"] > 0
