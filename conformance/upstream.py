"""The scripted upstream of a conformance run: it writes every request to a file, and says where it is."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from fake_openai import Failure, FakeServer, Reply, Request, ToolCall


def main(log: Path) -> None:
    writing = threading.Lock()
    kept = log.open("w", encoding="utf-8")
    failed: set[str] = set()

    def script(request: Request) -> Reply | Failure:
        asked = str(request.body.get("messages"))
        with writing:
            kept.write(json.dumps(request.body) + "\n")
            kept.flush()
            if "Fail once" in asked and asked not in failed:
                failed.add(asked)
                return Failure(status=401)  # which the service does not try again: its client is told
        return answer(request)

    with FakeServer(script, token_ids=True) as server:
        print(json.dumps({"url": server.url}), flush=True)
        sys.stdin.read()


def answer(request: Request) -> Reply:
    """The answer is 42; a tool is called where one is offered and has not been called yet."""
    body = request.body
    if "messages" not in body:
        return Reply(content=" 42")
    called = any(message["role"] == "tool" for message in body["messages"])
    if body.get("tools") and not called:
        name = body["tools"][0]["function"]["name"]
        return Reply(tool_calls=(ToolCall(name, '{"a": 40, "b": 2}'),))
    kind = (body.get("response_format") or {}).get("type")
    if kind in ("json_schema", "json_object"):
        return Reply(content='{"answer": 42}')
    return Reply(reasoning="forty and two", content="The answer is \\boxed{42}.", cached_tokens=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
