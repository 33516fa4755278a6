from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from fake_openai import Failure, FakeServer, Reply, Request
from openzaya.cli.solve import how_to_go_on

Program = Callable[..., Result]

SMALL = ["-N", 4, "-C", 2, "-T", 1, "--beta", 40, "--tau", 10, "--final-tokens", 60]
PROBLEM = "Compute 40 + 2."
FOUND = Reply(reasoning="40 and 2 together", content="The answer is \\boxed{42}.")


def test_standard_output_is_the_answer_text_alone(openzaya_program: Program) -> None:
    with FakeServer(FOUND) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, *SMALL)
    assert (result.exit_code, result.stdout) == (0, "The answer is \\boxed{42}.\n")


def test_progress_is_lines_on_standard_error_when_it_is_no_terminal(openzaya_program: Program) -> None:
    with FakeServer(FOUND) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, *SMALL)
    lines = result.stderr.splitlines()
    assert lines[0] == "Markovian RSA with fake: N 4, C 2, T 1, β 40, τ 10; at most 400 tokens"
    assert lines[1].startswith("round 0: 4 candidates; votes 42 ×4; ")
    assert lines[-1].startswith("answered after ")
    assert "\x1b" not in result.stderr


def test_quiet_says_nothing_but_the_answer(openzaya_program: Program) -> None:
    with FakeServer(FOUND) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--quiet", *SMALL)
    assert (result.stdout, result.stderr) == ("The answer is \\boxed{42}.\n", "")


def test_json_is_one_object_with_the_fields_of_the_contract(openzaya_program: Program, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    with FakeServer(FOUND) as server:
        result = openzaya_program(
            "solve", PROBLEM, "--backend", server.url, "--json", "--journal", journal, "--seed", 3, *SMALL
        )
    values = json.loads(result.stdout)
    assert list(values) == [
        "answer", "text", "votes", "rounds", "usage", "finish_reason", "exactness", "seconds", "journal"
    ]  # fmt: skip
    assert (values["answer"], values["votes"], values["finish_reason"]) == ("42", {"42": 4}, "answered")
    assert [list(each) for each in values["rounds"]] == 2 * [
        ["round", "candidates", "failed", "cut", "completion_tokens", "seconds"]
    ]
    assert list(values["usage"]) == ["prompt_tokens", "completion_tokens", "cached_tokens"]
    assert values["journal"] == str(journal)
    assert journal.read_text(encoding="utf-8").count("\n") == 1 + 8 + 1


def test_a_dash_reads_the_problem_from_standard_input(openzaya_program: Program) -> None:
    with FakeServer(FOUND) as server:
        result = openzaya_program(
            "solve", "-", "--backend", server.url, "--preset", "single", "--quiet", stdin="How many\nare 6 x 7?\n"
        )
        assert server.requests[0].prompt == "How many\nare 6 x 7?"
    assert result.exit_code == 0


def test_several_servers_share_the_candidates_and_the_named_model_is_asked(openzaya_program: Program) -> None:
    slow = Reply(content="\\boxed{42}", delay=0.02)
    with FakeServer(slow, models=("a", "b")) as one, FakeServer(slow, models=("a", "b")) as other:
        result = openzaya_program(
            "solve", PROBLEM, "--backend", one.url, "--backend", other.url, "--backend-model", "b", *SMALL
        )
        assert result.exit_code == 0
        asked = one.requests + other.requests
        assert one.requests
        assert other.requests
    assert {request.body["model"] for request in asked} == {"b"}


def test_the_key_comes_from_the_named_environment_variable(
    openzaya_program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sesame")
    with FakeServer(FOUND, api_key="sesame") as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--api-key-env", "SOME_KEY", *SMALL)
    assert result.exit_code == 0
    assert "sesame" not in result.stderr


def test_settings_reach_the_requests(openzaya_program: Program) -> None:
    with FakeServer(FOUND) as server:
        openzaya_program("solve", PROBLEM, "--backend", server.url, "--quiet", "--final-n", 2, *SMALL)
        asked = server.requests
    assert [request.body["max_tokens"] for request in asked] == [40] * 4 + [60] * 2
    assert len({request.body["seed"] for request in asked}) == 6


def test_a_policy_that_needs_a_final_call_makes_one(openzaya_program: Program) -> None:
    with FakeServer(FOUND) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--select", "final", *SMALL)
        assert len(server.requests) == 9
    assert "one final aggregation" in result.stderr


def test_wordings_from_a_file_are_used(openzaya_program: Program, tmp_path: Path) -> None:
    wordings = tmp_path / "prompts.toml"
    wordings.write_text('[math]\naggregate = "MINE {{question}} THEIRS {{tails}}"\n', encoding="utf-8")
    with FakeServer(FOUND) as server:
        openzaya_program("solve", PROBLEM, "--backend", server.url, "--prompts", wordings, *SMALL)
        assert server.requests[-1].prompt.startswith("MINE " + PROBLEM + " THEIRS ")


# ---- endings ----


def test_a_token_budget_ends_with_code_4_and_the_best_answer_so_far(openzaya_program: Program) -> None:
    def script(request: Request) -> Reply:
        return FOUND if request.index < 4 else Reply(reasoning="on and on " * 20, content="late")

    # More than the first round's 80, so that its candidates are whole.
    with FakeServer(script) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--max-total-tokens", 100, *SMALL)
    assert (result.exit_code, result.stdout) == (4, "The answer is \\boxed{42}.\n")
    assert "the budget ended the run; the answer is the best so far" in result.stderr


def test_a_deadline_ends_with_code_4_and_json_all_the_same(openzaya_program: Program) -> None:
    with FakeServer(Reply(content="never", stall_after=0)) as server:
        result = openzaya_program(
            "solve", PROBLEM, "--backend", server.url, "--deadline", 0.3, "--json", "--quiet", *SMALL
        )
        server.wait_until(lambda seen: len(seen.aborts) == 4)
    values = json.loads(result.stdout)
    assert (result.exit_code, values["finish_reason"], values["answer"]) == (4, "deadline", None)
    assert result.stderr == "openzaya: the deadline ended the run; no candidate had answered yet\n"


def test_a_reply_that_ends_inside_its_reasoning_is_no_answer(openzaya_program: Program) -> None:
    with FakeServer(Reply(reasoning="and so on " * 50)) as server:
        result = openzaya_program("solve", PROBLEM, "--backend", server.url, "--quiet", *SMALL)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "raise --final-tokens" in result.stderr


def test_a_failed_run_keeps_its_journal_and_says_how_to_go_on(
    openzaya_program: Program, tmp_path: Path, no_waiting: None
) -> None:
    journal = tmp_path / "run.jsonl"

    def script(request: Request) -> Reply | Failure:
        return FOUND if request.index < 4 else Failure(status=400, message="out of order")

    with FakeServer(script) as server:
        failed = openzaya_program("solve", PROBLEM, "--backend", server.url, f"--journal={journal}", *SMALL)
        server.script = FOUND
        resumed = openzaya_program("solve", PROBLEM, "--backend", server.url, "--resume", journal, *SMALL)
        assert len(server.requests) == 4 + 4 + 4, "the four good rollouts of round 0 are not run again"
    assert failed.exit_code == 3
    assert failed.stdout == ""
    assert "out of order" in failed.stderr
    assert f"go on with: openzaya solve --resume {journal} 'Compute 40 + 2.'" in failed.stderr
    assert (resumed.exit_code, resumed.stdout) == (0, "The answer is \\boxed{42}.\n")
    assert "8 rollouts are taken from the journal" in resumed.stderr


def test_how_to_go_on_replaces_the_journal_and_quotes(tmp_path: Path) -> None:
    kept = tmp_path / "a run.jsonl"
    assert "nothing was kept" in how_to_go_on(["solve", "x"], kept)
    kept.touch()
    arguments = ["--debug", "solve", "--journal", str(kept), "--seed", "3", "--", "-5 + 3"]
    assert how_to_go_on(arguments, kept).endswith(f"openzaya --debug solve --resume '{kept}' --seed 3 -- '-5 + 3'")


# ---- errors, each one sentence ----


def only_sentence(result: Result) -> str:
    """The one line of standard error that a failure leaves."""
    *progress, sentence = [line for line in result.stderr.splitlines() if "nothing was kept of this run" not in line]
    assert not any(line.startswith("openzaya:") for line in progress)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return sentence


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([""], 2, "the problem is empty; give the text of a problem"),
        ([" \n "], 2, "the problem is empty"),
        ([PROBLEM, "--model", "/nowhere/at/all"], 2, "'/nowhere/at/all' is no model folder"),
        ([PROBLEM, "--preset", "gigantic"], 2, "there is no preset 'gigantic'; choose one of light, default"),
        ([PROBLEM, "--preset", "light", "-C", 9], 2, "C is 9 and N is 8"),
        ([PROBLEM, "--preset", "light", "--tau", 9000], 2, "τ is 9000 and β is 8192"),
        ([PROBLEM, "--preset", "light", "-N", 0], 2, "candidates is 0"),
        ([PROBLEM, "--preset", "light", "--select", "best"], 2, "select is 'best'"),
        ([PROBLEM, "--preset", "light", "--tail", "head"], 2, "tail is 'head'"),
        ([PROBLEM, "--backend", "ftp://host/v1"], 2, "'ftp://host/v1' is no base URL of a server"),
        ([PROBLEM, "--backend", "http://h/v1?key=1"], 2, "carries a query"),
        ([PROBLEM, "--backend", "http://h", "--model", "tiny"], 2, "two sources of tokens; give one"),
        ([PROBLEM, "--backend-model", "m"], 2, "--backend-model m belongs to a server"),
        ([PROBLEM, "--backend", "http://h", "--device", "cuda"], 2, "--device cuda is for a model in this process"),
        ([PROBLEM, "--device", "cuda:99"], 2, "device 'cuda:99' cannot be used here"),
        ([PROBLEM, "--backend", "http://h", "--api-key-env", "NOT_SET"], 2, "NOT_SET of --api-key-env is not set"),
        ([PROBLEM, "--prompts", "/nowhere.toml"], 2, "cannot read the prompts file /nowhere.toml"),
        ([PROBLEM, "--resume", "/nowhere.jsonl"], 2, "there is no journal /nowhere.jsonl to resume"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    openzaya_program: Program, arguments: list[object], code: int, says: str
) -> None:
    result = openzaya_program("solve", *arguments)
    assert says in only_sentence(result)
    assert result.exit_code == code


def test_an_unreachable_server_is_one_sentence_and_code_3(openzaya_program: Program, no_waiting: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        result = openzaya_program("solve", PROBLEM, "--backend", url)
    assert result.exit_code == 3
    assert url in only_sentence(result)


@pytest.mark.parametrize("named", [True, False])
def test_a_wrong_key_is_one_sentence_and_code_3(
    openzaya_program: Program, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.setenv("SOME_KEY", "wrong")
    with FakeServer(FOUND, api_key="right") as server:
        chosen = ["--backend-model", "fake"] if named else []
        result = openzaya_program(
            "solve", PROBLEM, "--backend", server.url, *chosen, "--api-key-env", "SOME_KEY", *SMALL
        )
        asked = len(server.requests)
    assert result.exit_code == 3
    assert "401" in result.stderr
    assert "SOME_KEY" in only_sentence(result)
    assert asked == 4, "a refused key is not tried again"


def test_a_context_too_small_for_question_tails_and_beta_is_code_2(openzaya_program: Program) -> None:
    with FakeServer(FOUND, context=300) as server:
        result = openzaya_program(
            "solve", PROBLEM, "--backend", server.url, "-N", 4, "-C", 4, "-T", 1, "--beta", 200, "--tau", 40
        )
        assert not server.requests
    assert result.exit_code == 2
    assert "the context of 300 tokens is too small" in only_sentence(result)


def test_a_journal_that_exists_is_not_overwritten(openzaya_program: Program, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    journal.write_text("precious", encoding="utf-8")
    result = openzaya_program("solve", PROBLEM, "--backend", "http://127.0.0.1:9", "--journal", journal)
    assert result.exit_code == 2
    assert "exists already; resume it" in only_sentence(result)
    assert journal.read_text(encoding="utf-8") == "precious"


# ---- the embedded model ----


def test_a_model_in_this_process_answers(openzaya_program: Program, tiny_model: Path) -> None:
    result = openzaya_program(
        "solve", PROBLEM, "--model", tiny_model, "--json", "-N", 2, "-C", 1, "-T", 1, "--beta", 12, "--tau", 4,
        "--final-tokens", 12,
    )  # fmt: skip
    values = json.loads(result.stdout)
    assert result.exit_code in (0, 4), "noise may hold no answer"
    assert values["exactness"] in ("ids", "none")
    assert values["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("damage", ["truncated", "removed", "foreign"])
def test_a_broken_model_is_one_sentence_that_names_the_file(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path, damage: str
) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "removed":
        weights.unlink()
    else:
        weights.write_bytes(b"not weights at all")
    result = openzaya_program("solve", PROBLEM, "--model", tmp_path, "--preset", "single")
    assert result.exit_code == 2
    assert str(tmp_path) in only_sentence(result)
