"""A source of tokens that costs next to nothing, in a process of its own: one prepared stream for every request."""

from __future__ import annotations

import asyncio
import json
import sys

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n\r\n"


def prepared_stream(chunks: int) -> bytes:
    """A whole response of so many events with text: reasoning, then a boxed answer, then the usage."""
    deltas = [{"reasoning_content": f"word{place % 97} "} for place in range(chunks - 1)] + [{"content": "\\boxed{42}"}]
    documents = [_chunk(delta) for delta in deltas]
    documents.append(_chunk({}, "stop"))
    usage = {"prompt_tokens": 64, "completion_tokens": chunks, "total_tokens": 64 + chunks}
    documents.append({"id": "load", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    events = [f"data: {json.dumps(document)}\n\n".encode() for document in documents] + [b"data: [DONE]\n\n"]
    body = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    return _HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked") + body


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "load", "object": "chat.completion.chunk", "created": 0, "model": "load", "choices": [choice]}


async def serve_prepared(chunks: int) -> None:
    """Answer on a free port, which the first line of standard output names, until standard input ends."""
    stream = prepared_stream(chunks)
    models = json.dumps(
        {"object": "list", "data": [{"id": "load", "object": "model", "max_model_len": 1 << 20}]}
    ).encode()
    listed = _HEAD % (b"application/json", b"Content-Length: %d" % len(models)) + models
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower()[:15] == b"content-length:"), 0
                )
                await reader.readexactly(length)
                path = head.split(b" ", 2)[1]
                wanted = {b"/v1/chat/completions": stream, b"/v1/models": listed}
                writer.write(wanted.get(path, missing))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 24, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve_prepared(int(sys.argv[1])))
