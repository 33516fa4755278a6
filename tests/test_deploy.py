"""Launch files: parsed, and run with stand-ins for Slurm and torchrun that write down how they were called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
DEPLOY = REPOSITORY / "deploy"
RECIPE = "recipes/tiny/zaya1-tiny.toml"

Stand = Callable[..., tuple[subprocess.CompletedProcess[str], list[list[str]]]]

RECORD = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + chr(10))
"""
TORCHRUN = RECORD + 'sys.exit(int(os.environ.get("PREFLIGHT_CODE", 0)) if "--preflight" in sys.argv else 0)\n'
SRUN = (
    RECORD
    + """
import subprocess, time
time.sleep(float(os.environ.get("SRUN_SECONDS", 0)))
sys.exit(subprocess.call(sys.argv[sys.argv.index("bash"):]))
"""
)
SCONTROL = RECORD + 'print("node7" + chr(10) + "node8") if sys.argv[1] == "show" else None\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Stand-ins first in the PATH, and what Slurm tells a job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("torchrun", TORCHRUN), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text.replace("{python}", sys.executable), encoding="utf-8")
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), *sys.path]),
        "CALLS": str(tmp_path / "calls"),
        "GPUS": "8",
    }


SLURM = {
    "SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_JOB_ID": "4711", "SLURM_GPUS_ON_NODE": "8",
}  # fmt: skip


def calls(environment: dict[str, str]) -> list[list[str]]:
    path = Path(environment["CALLS"])
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(environment: dict[str, str], script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(DEPLOY / script), *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


@pytest.mark.parametrize("script", ["node.sh", "slurm/train.sbatch"])
def test_scripts_are_valid_bash(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(DEPLOY / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_node_checks_and_then_trains_each_in_a_launch_of_its_own(environment: dict[str, str]) -> None:
    done = run(environment, "node.sh", RECIPE, "--plan", "cluster.toml", "--out", "runs/a b")
    assert done.returncode == 0, done.stderr
    check, train = calls(environment)
    assert check[check.index("-m") :] == [
        "-m", "openzaya", "train", RECIPE, "--plan", "cluster.toml", "--out", "runs/a b", "--preflight",
    ]  # fmt: skip
    # --plan would print a plan in place of training.
    assert train[train.index("-m") :] == ["-m", "openzaya", "train", RECIPE, "--out", "runs/a b"]
    assert (option(check, "--max-restarts"), option(train, "--max-restarts")) == ("0", "3")
    assert option(check, "--rdzv-endpoint") != option(train, "--rdzv-endpoint")
    assert option(check, "--rdzv-id") != option(train, "--rdzv-id")
    assert option(train, "--rdzv-conf") == "is_host=true"
    assert option(train, "--nproc-per-node") == "8"


def test_what_the_check_finds_stops_the_launch(environment: dict[str, str]) -> None:
    done = run({**environment, "PREFLIGHT_CODE": "3"}, "node.sh", RECIPE)
    assert done.returncode == 3
    assert len(calls(environment)) == 1


def test_a_node_that_joins_a_checked_launch_does_not_check_alone(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "CHECKED": str(tmp_path / "checked")}
    for expected in (2, 3):
        assert run(environment, "node.sh", RECIPE).returncode == 0
        assert len(calls(environment)) == expected
    assert run({**environment, "PREFLIGHT": "0", "CHECKED": ""}, "node.sh", RECIPE).returncode == 0
    assert len(calls(environment)) == 4


def test_a_wrong_recipe_ends_a_node_before_any_rank_starts(environment: dict[str, str], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("speed = 9", encoding="utf-8")
    done = run(environment, "node.sh", str(wrong))
    assert done.returncode == 2
    assert "phases: Field required" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(environment, "node.sh").returncode == 2
    assert calls(environment) == []


def test_a_slurm_job_runs_the_node_script_on_every_node_with_one_head(environment: dict[str, str]) -> None:
    done = run({**environment, **SLURM}, "slurm/train.sbatch", RECIPE, "--out", "runs/x")
    assert done.returncode == 0, done.stderr
    _, srun, check, train = calls(environment)
    assert srun[-5:] == ["bash", "deploy/node.sh", RECIPE, "--out", "runs/x"]
    assert "--kill-on-bad-exit=1" in srun
    assert option(train, "--nnodes") == "2"
    assert option(train, "--rdzv-endpoint").startswith("node7:")
    assert option(check, "--rdzv-id") == "4711.0-preflight"
    assert "--rdzv-conf" not in train, "torchrun finds out by itself which node is the head"
    assert run({**environment, **SLURM}, "slurm/train.sbatch").returncode == 2


def test_a_slurm_job_in_a_container_mounts_the_checkout(environment: dict[str, str]) -> None:
    image = {"OPENZAYA_IMAGE": "openzaya.sqsh", "OPENZAYA_MOUNTS": "/shared:/shared"}
    assert run({**environment, **SLURM, **image}, "slurm/train.sbatch", RECIPE).returncode == 0
    srun = calls(environment)[1]
    assert option(srun, "--container-image") == "openzaya.sqsh"
    assert option(srun, "--container-mounts") == f"{REPOSITORY},/shared:/shared"


def test_a_slurm_job_near_its_limit_is_queued_again_and_waits_for_its_step(environment: dict[str, str]) -> None:
    script = ["bash", str(DEPLOY / "slurm" / "train.sbatch"), RECIPE]
    slow = {**environment, **SLURM, "SRUN_SECONDS": "2", "PREFLIGHT": "0"}
    with subprocess.Popen(script, env=slow, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as job:
        while not any(call[0] == "srun" for call in calls(environment)):
            time.sleep(0.05)
        job.send_signal(10)  # USR1
        assert job.wait(timeout=120) == 0
    assert ["scontrol", "requeue", "4711"] in calls(environment)
    assert calls(environment)[-1][0] == "torchrun", "the step was waited for, not left behind"


def test_the_kubernetes_manifest_fits_together() -> None:
    service, job = yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    values = {each["name"]: each.get("value") for each in container["env"]}
    name = job["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(values["NODES"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert values["HEAD"] == f"{name}-0.{pod['subdomain']}"
    assert int(values["GPUS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    ports = {port["port"] for port in service["spec"]["ports"]}
    assert ports == {29500, 29501} == {port["containerPort"] for port in container["ports"]}
    (policy,) = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert policy["onExitCodes"]["containerName"] == container["name"]


def test_the_kubernetes_pods_run_the_node_script(environment: dict[str, str], tmp_path: Path) -> None:
    _, job = yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    values |= {"RUN_ID": "openzaya-train", "JOB_COMPLETION_INDEX": "3", "CHECKED": str(tmp_path / "checked")}
    done = subprocess.run(
        [*container["command"], *container["args"]], env={**environment, **values}, cwd=REPOSITORY,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, train = calls(environment)
    assert option(train, "--rdzv-endpoint") == "openzaya-train-0.openzaya-train:29501"
    assert option(train, "--rdzv-conf") == "is_host=false"
    assert option(train, "--nnodes") == "16"


@pytest.mark.parametrize("vendor", ["cuda", "rocm"])
def test_container_files_copy_what_there_is_and_name_real_extras(vendor: str) -> None:
    text = (DEPLOY / "containers" / f"{vendor}.Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {name for name, _ in instructions} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "CMD"}
    assert instructions[0][0] == "ARG", "the base is an argument"
    for _, words in (each for each in instructions if each[0] == "COPY"):
        *sources, _ = words.split()
        assert all((REPOSITORY / source).exists() for source in sources)
    for _, words in (each for each in instructions if each[0] == "RUN"):
        checked = subprocess.run(["bash", "-n", "-c", words], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    (command,) = [words for name, words in instructions if name == "CMD"]
    assert all((REPOSITORY / part).exists() for part in json.loads(command)[1:])
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))
