"""The `rsa_*` fields of Zyphra's example proxy: T passes, the last of width k, and no further call."""

from __future__ import annotations

from typing import Any

import pytest
from service_under_test import ask

from fake_openai import FakeServer, Reply, Request


def thinker(request: Request) -> Reply:
    return Reply(reasoning="  if x:\n      six sevens", content=f"\\boxed{{{request.index}}}")


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_t_passes_the_last_of_width_one_and_no_further_call(passes: int) -> None:
    with FakeServer(thinker) as server:
        document = ask(
            server, rsa_t=passes, rsa_n=4, rsa_k=2, short_resp_len=100, tail_window_len=5, max_tokens=250,
            final_temperature=0.5, final_top_p=0.9, final_top_k=30,
        ).json()  # fmt: skip
    *earlier, last = server.requests
    assert len(earlier) == 4 * passes
    assert {request.body["max_tokens"] for request in earlier} == {100}
    sampling = {name: last.body[name] for name in ("max_tokens", "temperature", "top_p", "top_k")}
    assert sampling == {"max_tokens": 250, "temperature": 0.5, "top_p": 0.9, "top_k": 30}
    assert len(document["choices"]) == 1
    assert document["rsa_metadata"]["rsa_iterations"] == passes
    assert document["rsa_metadata"]["rsa_n"] == 4


@pytest.mark.parametrize(("final_n", "width"), [(2, 2), (0, 4), (9, 4)])
def test_a_wider_last_pass_gives_as_many_choices(final_n: int, width: int) -> None:
    with FakeServer(thinker) as server:
        document = ask(server, rsa_t=1, rsa_n=4, rsa_k=2, rsa_final_n=final_n, return_rsa_metadata=False).json()
    assert len(server.requests) == 4 + width
    assert [choice["index"] for choice in document["choices"]] == list(range(width))
    assert "rsa_metadata" not in document


def test_n_is_the_population_only_beside_another_rsa_field() -> None:
    with FakeServer(thinker) as server:
        assert len(ask(server, n=5, rsa_t=1, rsa_k=2).json()["choices"]) == 1
        assert len(server.requests) == 5 + 1


def test_tails_keep_their_layout_and_the_system_prompt_is_not_the_problem() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Six times seven?"}]
    with FakeServer(thinker, tokenize="vllm", vendor="vllm") as server:
        ask(server, messages=turns, rsa_t=1, rsa_n=2, rsa_k=2, tail_window_len=50)
    last = server.requests[-1].messages
    assert last[0] == turns[0]
    assert "Six times seven?" in last[1]["content"]
    assert "  if x:\n      six sevens" in last[1]["content"]


@pytest.mark.parametrize(("field", "kind"), [({"use_pacore": True}, True), ({"rsa_tail_window": True}, False)])
def test_pacore_passes_on_the_finished_answer(field: Any, kind: bool) -> None:
    with FakeServer(thinker) as server:
        document = ask(server, rsa_t=1, rsa_n=2, rsa_k=2, **field).json()
        assert ("\\boxed{0}" in server.requests[-1].prompt) is kind
    assert document["rsa_metadata"]["use_pacore"] is kind
