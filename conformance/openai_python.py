"""The openai package for Python, whichever version runs this."""

from __future__ import annotations

import os
import uuid

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="none", max_retries=1)
MODEL, ASK = "zaya", [{"role": "user", "content": "What is 40 plus 2?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Answer(BaseModel):
    answer: int


def chat() -> None:
    reply = client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"mrsa": {"candidates": 4}})
    assert reply.choices[0].message.content == "The answer is \\boxed{42}."
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0


def stream() -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The answer is \\boxed{42}."
    assert chunks[-1].usage.completion_tokens > 0
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def tools() -> None:
    reply = client.chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL])
    call = reply.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 40, "b": 2}')
    turns = [*ASK, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    again = client.chat.completions.create(model=MODEL, messages=turns, tools=[TOOL])
    assert "42" in again.choices[0].message.content


def parse() -> None:
    completions = getattr(client.chat.completions, "parse", None) or client.beta.chat.completions.parse
    reply = completions(model=MODEL, messages=ASK, response_format=Answer)
    assert reply.choices[0].message.parsed == Answer(answer=42)


def completions() -> None:
    reply = client.completions.create(model=MODEL, prompt="40 + 2 =", max_tokens=4, logprobs=1)
    assert reply.choices[0].text == " 42"
    assert reply.choices[0].logprobs.tokens


def models() -> None:
    assert client.models.list().data[0].id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL


def errors() -> None:
    for call, expected in (
        (lambda: client.chat.completions.create(model="other", messages=ASK), openai.NotFoundError),
        (lambda: client.chat.completions.create(model=MODEL, messages=ASK, temperature=9), openai.BadRequestError),
        (lambda: client.chat.completions.create(model=MODEL, messages=[]), openai.BadRequestError),
    ):
        try:
            call()
        except expected as error:
            message = error.body["message"]
            print(f"  refused as it should be: {message}")
        else:
            raise AssertionError(f"no {expected.__name__}")


def retries() -> None:
    ask = [{"role": "user", "content": f"Fail once: {uuid.uuid4()}"}]
    reply = client.chat.completions.with_raw_response.create(model=f"{MODEL}@single", messages=ask)
    assert reply.http_request.headers.get("x-stainless-retry-count", "1") == "1"  # the oldest does not say it
    assert reply.parse().choices[0].message.content == "The answer is \\boxed{42}."
    try:
        ask[0]["content"] = f"Fail once: {uuid.uuid4()}"
        client.with_options(max_retries=0).chat.completions.create(model=f"{MODEL}@single", messages=ask)
    except openai.InternalServerError:
        pass
    else:
        raise AssertionError("no InternalServerError")


def responses() -> None:
    if not hasattr(client, "responses"):
        print("  (this version has no responses)")
        return
    reply = client.responses.create(model=MODEL, input="What is 40 plus 2?")
    assert reply.output_text == "The answer is \\boxed{42}."
    more = client.responses.create(model=MODEL, input="And 2 more?", previous_response_id=reply.id)
    assert more.status == "completed"
    with client.responses.stream(model=MODEL, input="What is 40 plus 2?") as events:
        assert [event.type for event in events][-1] == "response.completed"
        assert events.get_final_response().output_text == reply.output_text
    parsed = client.responses.parse(model=MODEL, input="What is 40 plus 2?", text_format=Answer)
    assert parsed.output_parsed == Answer(answer=42)


def background() -> None:
    if not hasattr(client, "responses"):
        return
    begun = client.responses.create(model=MODEL, input="What is 40 plus 2?", background=True, stream=True)
    first = [next(iter(begun)) for _ in range(2)]
    begun.close()
    rest = list(client.responses.retrieve(first[0].response.id, stream=True, starting_after=first[-1].sequence_number))
    assert rest[0].sequence_number == first[-1].sequence_number + 1
    assert rest[-1].type == "response.completed"
    client.responses.delete(first[0].response.id)


for check in (chat, stream, tools, parse, completions, models, errors, retries, responses, background):
    check()
    print(f"openai {openai.__version__}: {check.__name__} passed", flush=True)
