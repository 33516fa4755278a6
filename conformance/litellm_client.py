"""LiteLLM as a client: chat, stream, tools, errors."""

from __future__ import annotations

import os

import litellm

HERE = {"model": "openai/zaya", "api_base": os.environ["BASE_URL"], "api_key": "none"}
ASK = [{"role": "user", "content": "What is 40 plus 2?"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
EXPECTED = "The answer is \\boxed{42}."

reply = litellm.completion(**HERE, messages=ASK, extra_body={"mrsa": {"candidates": 4}})
assert reply.choices[0].message.content == EXPECTED
assert reply.usage.total_tokens > 0
chunks = list(litellm.completion(**HERE, messages=ASK, stream=True))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == EXPECTED
called = litellm.completion(**HERE, messages=ASK, tools=[TOOL])
assert called.choices[0].message.tool_calls[0].function.name == "add"
try:
    litellm.completion(**{**HERE, "model": "openai/other"}, messages=ASK)
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("no NotFoundError")
answer = litellm.responses(**HERE, input="What is 40 plus 2?")
assert answer.output[-1].content[0].text == EXPECTED
print("litellm: passed")
