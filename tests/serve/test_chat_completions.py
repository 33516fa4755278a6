"""`POST /v1/chat/completions`: what reaches the upstream, and what the client reads."""

from __future__ import annotations

from typing import Any

import pytest
from service_under_test import QUESTION, ask, events_of, is_final, talk

from fake_openai import Failure, FakeServer, Reply, Request, ToolCall

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def thinker(request: Request) -> Reply:
    if is_final(request):
        return Reply(reasoning="all agree", content="It is \\boxed{42}.", cached_tokens=5)
    return Reply(reasoning=f"six sevens {request.index}", content="\\boxed{42}", cached_tokens=3)


def test_a_plain_request_runs_rounds_and_one_final_call() -> None:
    with FakeServer(thinker) as server:
        response = ask(server)
    document = response.json()
    assert response.status_code == 200
    assert len(server.requests) == 3 + 3 + 1
    (choice,) = document["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "It is \\boxed{42}."
    assert choice["message"]["reasoning_content"] == "all agree"
    assert document["mrsa"]["votes"] == {"42": 3}
    assert [summary["candidates"] for summary in document["mrsa"]["rounds"]] == [3, 3]
    assert document["model"] == "zaya"


def test_usage_is_the_sum_over_all_rollouts() -> None:
    seen: list[Any] = []

    def counting(request: Request) -> Reply:
        seen.append(request)
        return thinker(request)

    with FakeServer(counting) as server:
        usage = ask(server).json()["usage"]
        prompts = sum(len(server.tokenizer.encode(request.messages[0]["content"])) for request in seen)
    assert usage["prompt_tokens"] == prompts
    assert usage["prompt_tokens_details"]["cached_tokens"] == 6 * 3 + 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 7


def test_the_clients_sampling_and_stop_strings_reach_the_final_call_only() -> None:
    with FakeServer(thinker) as server:
        response = ask(server, temperature=0, seed=1234, stop=["Question:", "\n\n\n"], max_tokens=77)
    assert response.status_code == 200
    *rollouts, final = server.requests
    assert final.body["temperature"] == 0
    assert final.body["stop"] == ["Question:", "\n\n\n"]
    assert final.body["max_tokens"] == 77
    assert all(rollout.body["temperature"] == 1.0 and "stop" not in rollout.body for rollout in rollouts)
    assert len({rollout.body["seed"] for rollout in server.requests}) == 7
    assert {rollout.body["max_tokens"] for rollout in rollouts} == {200, 300}


def test_the_same_seed_gives_the_same_requests_and_no_seed_gives_others() -> None:
    def seeds(**body: Any) -> list[int]:
        with FakeServer(thinker) as server:
            ask(server, **body)
        return sorted(request.body["seed"] for request in server.requests)

    assert seeds(seed=5) == seeds(seed=5)
    assert seeds() != seeds()


def test_tools_shape_the_final_call_only_and_their_calls_come_back() -> None:
    def caller(request: Request) -> Reply:
        if "tools" in request.body:
            return Reply(tool_calls=(ToolCall("add", '{"a": 1, "b": 2}'),))
        return Reply(reasoning="add them", content="\\boxed{3}")

    with FakeServer(caller) as server:
        document = ask(server, tools=TOOLS, mrsa={"select": "majority"}).json()
    assert ["tools" in request.body for request in server.requests] == [False] * 6 + [True]
    (choice,) = document["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}


def test_all_earlier_turns_are_kept_and_only_the_last_question_is_wrapped() -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "What is 6 times 7?"},
    ]
    with FakeServer(thinker) as server:
        assert ask(server, messages=turns).status_code == 200
    last = server.requests[-1].messages
    assert last[0] == {"role": "system", "content": "Be brief."}
    assert last[1:3] == turns[1:3]
    assert "What is 6 times 7?" in last[3]["content"]
    assert "six sevens" in last[3]["content"]


@pytest.mark.parametrize(
    "body",
    [{"model": "zaya@single"}, {"mrsa": {"preset": "single"}}, {"reasoning_effort": "minimal"}, {"rsa_t": 0}],
)
def test_single_is_one_request_with_the_clients_own_parameters(body: Any) -> None:
    with FakeServer(Reply(reasoning="r", content="forty-two")) as server:
        response = ask(server, temperature=0.3, top_p=0.8, stop="x", seed=9, max_tokens=50, tools=TOOLS, **body)
    assert response.json()["choices"][0]["message"]["content"] == "forty-two"
    assert "mrsa" not in response.json()
    (request,) = server.requests
    sent = {name: request.body[name] for name in ("temperature", "top_p", "stop", "seed", "max_tokens", "tools")}
    assert sent == {"temperature": 0.3, "top_p": 0.8, "stop": ["x"], "seed": 9, "max_tokens": 50, "tools": TOOLS}
    assert request.messages == QUESTION


def test_n_means_choices_and_each_is_a_sample_of_its_own() -> None:
    with FakeServer(lambda request: Reply(content=f"reply {request.index}")) as server:
        document = ask(server, model="zaya@single", n=3, seed=1).json()
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in document["choices"]}) == 3
    assert len({request.body["seed"] for request in server.requests}) == 3


def test_logprobs_come_with_a_plain_reply_and_are_refused_with_rounds() -> None:
    with FakeServer(Reply(content="forty two")) as server:
        document = ask(server, model="zaya@single", logprobs=True, top_logprobs=0).json()
        refusal = ask(server, logprobs=True)
    assert document["choices"][0]["logprobs"]["content"][0]["token"] == "forty"
    assert refusal.status_code == 400
    assert "@single" in refusal.json()["error"]["message"]


# ---- streams


def test_a_stream_begins_with_a_comment_tells_progress_and_gives_the_final_call_as_it_comes() -> None:
    with FakeServer(thinker) as server:
        response = ask(server, stream=True, stream_options={"include_usage": True})
        whole = ask(server, seed=1).json()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith(": ")
    chunks = events_of(response)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert "round 0 of 1: 3 of 3 done, 42 leads with 3 votes\n" in reasoning
    assert reasoning.endswith("all agree")
    pieces = [delta["content"] for delta in deltas if delta.get("content")]
    assert "".join(pieces) == "It is \\boxed{42}."
    assert len(pieces) > 3
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert chunks[-1]["usage"]["prompt_tokens_details"] == whole["usage"]["prompt_tokens_details"]
    assert chunks[-2]["mrsa"]["votes"] == {"42": 3}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_progress_can_be_left_out() -> None:
    with FakeServer(thinker) as server:
        chunks = events_of(ask(server, stream=True, mrsa={"progress": False}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "all agree"


def test_tool_calls_stream_in_pieces() -> None:
    with FakeServer(
        lambda request: (
            Reply(tool_calls=(ToolCall("add", '{"a": 1}'),)) if "tools" in request.body else Reply(content="1")
        )
    ) as server:
        chunks = events_of(ask(server, stream=True, tools=TOOLS))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "add"
    assert len(calls) == 2
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_without_a_final_call_the_winner_is_sent_whole() -> None:
    with FakeServer(thinker) as server:
        chunks = events_of(ask(server, stream=True, mrsa={"select": "majority", "progress": False}))
    assert len(server.requests) == 6
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "\\boxed{42}"


def test_a_silent_upstream_does_not_make_a_silent_stream() -> None:
    with FakeServer(Reply(content="late", first_delay=0.3)) as server:
        response = ask(server, model="zaya@single", stream=True, settings={"keep_alive": 0.05})
        slow = Reply(content="a b c d e f g h", delay=0.1)
        server.script = slow
        beating = ask(server, stream=True, settings={"keep_alive": 0.02}, mrsa={"progress": False})
    assert response.status_code == 200
    assert beating.text.count(": keep-alive") > 10


def test_a_final_call_that_breaks_off_in_the_stream_is_an_error_and_no_answer() -> None:
    def breaking(request: Request) -> Reply:
        return Reply(content="It is surely forty", cut_after=4) if is_final(request) else Reply(content="\\boxed{42}")

    with FakeServer(breaking) as server:
        chunks = events_of(ask(server, stream=True))
        whole = ask(server).json()
    assert chunks[-1]["error"]["code"] == "upstream_failed"
    assert whole["choices"][0]["message"]["content"] == "\\boxed{42}"
    assert whole["mrsa"]["failed"] == 1


# ---- errors


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "gpt-4o"}, 404, "there is no model 'gpt-4o'"),
        ({"model": "zaya@nothing"}, 400, "there is no preset 'nothing'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, "no user turn"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, 400, "role"),
        ({"temperature": 9}, 400, "temperature"),
        ({"mrsa": {"candidats": 3}}, 400, "candidats is no setting"),
        ({"mrsa": {"tails": 9}}, 400, "C is 9 and N is 3"),
        ({"rsa_q": 3}, 400, "rsa_q"),
        ({"rsa_n": 3, "mrsa": {"rounds": 1}}, 400, "two ways"),
        ({"mrsa": {"tau": 30000, "beta": 30000}}, 400, "context"),
        ({"mrsa": {"candidates": 9999}}, 400, "9999"),
        ({"rsa_summarize": True}, 400, "summaries"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_refused_before_the_first_byte(body: Any, status: int, said: str, stream: bool) -> None:
    with FakeServer(thinker) as server:
        response = ask(server, stream=stream, **body)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    error = response.json()["error"]
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not server.requests


@pytest.mark.parametrize("body", [b"{", b"[1]", b"[" * 99999, b'{"model": "zaya", "messages": "\\ud800"}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    async def use(client: Any) -> Any:
        return await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})

    with FakeServer(thinker) as server:
        response = talk(server, use)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("the body is")


@pytest.mark.parametrize(
    ("failure", "status"),
    [(Failure(status=500), 502), (Failure(status=401), 502), (Failure(status=400), 400), (Failure(status=429), 429)],
)
def test_a_failing_upstream_is_an_error_and_never_an_answer(failure: Failure, status: int) -> None:
    with FakeServer(failure) as server:
        plain = ask(server, model="zaya@single")
        streamed = ask(server, model="zaya@single", stream=True)
        rounds = ask(server)
    assert plain.status_code == streamed.status_code == rounds.status_code == status
    assert "only 0 of 3" in rounds.json()["error"]["message"]


def test_one_failed_rollout_does_not_fail_the_request() -> None:
    def one_fails(request: Request) -> Any:
        return Failure(status=400) if request.index == 1 else thinker(request)

    with FakeServer(one_fails) as server:
        document = ask(server).json()
    assert document["mrsa"]["failed"] == 1
    assert document["mrsa"]["rounds"][0]["failed"] == 1
    assert document["choices"][0]["message"]["content"] == "It is \\boxed{42}."


def test_a_deadline_gives_the_best_so_far_or_says_that_there_is_none() -> None:
    def slow(request: Request) -> Reply:
        return Reply(content="\\boxed{42}") if request.index < 3 else Reply(content="never", first_delay=30)

    with FakeServer(slow) as server:
        document = ask(server, mrsa={"deadline": 0.5}).json()
        server.script = Reply(content="never", first_delay=30)
        nothing = ask(server, mrsa={"deadline": 0.2})
        single = ask(server, model="zaya@single", settings={"limits": {"deadline": 0.2}})
        server.wait_until(lambda server: all(request.aborted or request.answered for request in server.requests))
    assert document["choices"][0]["message"]["content"] == "\\boxed{42}"
    assert document["choices"][0]["finish_reason"] == "length"
    assert document["mrsa"]["finish_reason"] == "deadline"
    assert nothing.status_code == single.status_code == 504
    assert len(server.aborts) == 3 + 3 + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_budget_ends_every_rollout_at_its_source_in_the_best_answer_so_far(stream: bool) -> None:
    def endless(request: Request) -> Reply:
        return Reply(content="\\boxed{42}") if request.index < 3 else Reply(content="on and on " * 400, delay=0.002)

    with FakeServer(endless) as server:
        response = ask(server, stream=stream, mrsa={"max_total_tokens": 60, "beta": 4000, "final_tokens": 4000})
        server.wait_until(lambda server: len(server.aborts) == 3)
    ends = [choice["finish_reason"] for document in (events_of(response) if stream else [response.json()])
            for choice in document["choices"] if choice["finish_reason"]]  # fmt: skip
    assert ends == ["length"]
    assert "\\\\boxed{42}" in response.text
    assert '"finish_reason":"budget"' in response.text


def test_fields_that_nothing_reads_are_named() -> None:
    with FakeServer(thinker) as server:
        assert ask(server, user="me", parallel_tool_calls=True).json()["ignored_fields"] == [
            "parallel_tool_calls",
            "user",
        ]


# ---- what is offered


def test_models_are_listed_with_the_presets_that_fit() -> None:
    async def use(client: Any) -> Any:
        listed = (await client.get("/v1/models")).json()
        one = await client.get("/v1/models/zaya@light")
        none = await client.get("/v1/models/zaya@headline")
        return listed, one.status_code, none.status_code

    with FakeServer(thinker, context=32768) as server:
        listed, one, none = talk(server, use)
    names = [model["id"] for model in listed["data"]]
    assert names[0] == "zaya"
    assert {"zaya@single", "zaya@light", "zaya@majority"} <= set(names)
    assert "zaya@headline" not in names
    assert (one, none) == (200, 404)


def test_health_and_unknown_addresses() -> None:
    async def use(client: Any) -> Any:
        paths = ("/health/live", "/health/ready", "/nothing", "/v1/chat/completions")
        return [await client.get(path) for path in paths]

    with FakeServer(thinker) as server:
        live, ready, nothing, wrong = talk(server, use)
    assert [response.status_code for response in (live, ready, nothing, wrong)] == [200, 200, 404, 405]
    assert "there is no GET /nothing" in nothing.json()["error"]["message"]
    assert live.headers["x-request-id"].startswith("req_")
