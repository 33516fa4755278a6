"""How a scripted reply goes over the wire: chunks in the server's style, with the scripted accidents."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fake_openai.script import Reply, Request

if TYPE_CHECKING:
    from fake_openai.server import FakeServer


@dataclass(frozen=True, slots=True)
class _Token:
    """One token of the reply. `kind` is the field that its text goes to; tags that a server swallows have no text."""

    index: int
    text: str
    kind: str


class ReplyWriter:
    """Writes one reply to one client."""

    def __init__(self, server: FakeServer, request: Request, reply: Reply) -> None:
        self._server = server
        self._request = request
        self._reply = reply
        self._chat = "messages" in request.body
        tokens = self._tokens()
        limit = request.body.get("max_tokens") or request.body.get("max_completion_tokens") or len(tokens) + 1
        self._cut = len(tokens) > limit
        self._kept = tokens[:limit]

    async def send(self, writer: asyncio.StreamWriter) -> None:
        """The whole response."""
        await asyncio.sleep(self._reply.first_delay)
        if self._reply.whole:
            await self._send_whole(writer)
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await writer.drain()
        reply = self._reply
        for place, chunk in enumerate(self._chunks()):
            if place == reply.stall_after:
                await asyncio.Event().wait()
            if place == reply.cut_after:
                writer.close()
                return
            if place == reply.garble_after:
                await self._write(writer, 'data: {"choices": [{"delta"\n\n')
            if place == reply.error_after:
                await self._event(writer, {"error": {"message": "the engine died", "code": 500}})
                break
            await self._pause(writer)
            await self._event(writer, chunk)
        else:
            if reply.done:
                await self._write(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _pause(self, writer: asyncio.StreamWriter) -> None:
        """The scripted delay before a chunk, with signs of life in it where they are scripted."""
        parts = 10 if self._reply.keep_alive_comments else 1
        for _ in range(parts):
            await asyncio.sleep(self._reply.delay / parts)
            if self._reply.keep_alive_comments:
                await self._write(writer, ": ping\n\n")

    def _tokens(self) -> list[_Token]:
        words, reply, style = self._server.tokenizer, self._reply, self._server.style
        separate = style in ("reasoning_content", "reasoning") and self._chat
        tokens: list[_Token] = []

        def add(text: str, kind: str) -> None:
            ids = words.encode(text)
            tokens.extend(_Token(index, piece, kind) for index, piece in zip(ids, words.texts(ids), strict=True))

        if reply.reasoning and separate:
            tokens.append(_Token(words.encode("<think>")[0], "", "reasoning"))
            add(reply.reasoning, style)
            tokens.append(_Token(words.encode("</think>")[0], "", "content"))
        elif reply.reasoning and style != "plain" and self._chat:
            if style == "think_tags":
                add("<think>\n", "content")
            add(f"{reply.reasoning}\n</think>\n\n", "content")
        elif reply.reasoning:
            add(reply.reasoning, "content")
        add(reply.content, "content")
        tokens.append(_Token(words.end_id, "", "content"))
        return tokens

    def _chunks(self) -> list[dict[str, Any]]:
        """The documents of the stream, as vLLM orders them: text, tool calls, finish reason, usage."""
        reply = self._reply
        chunks = [self._chunk({"role": "assistant", "content": ""}, [])] if self._chat else []
        if self._request.body.get("echo"):
            chunks.append(self._echo(self._request.body["prompt"]))
        for start in range(0, len(self._kept), reply.tokens_per_chunk):
            group = self._kept[start : start + reply.tokens_per_chunk]
            delta: dict[str, Any] = {}
            for token in group:
                if token.text:
                    delta[token.kind] = delta.get(token.kind, "") + token.text
            chunks.append(self._chunk(delta, group))
        if not self._cut:
            for index, call in enumerate(reply.tool_calls):
                head = {"index": index, "id": call.id, "type": "function"}
                middle = len(call.arguments) // 2
                first = {**head, "function": {"name": call.name, "arguments": call.arguments[:middle]}}
                second = {"index": index, "function": {"arguments": call.arguments[middle:]}}
                chunks += [self._chunk({"tool_calls": [piece]}, []) for piece in (first, second)]
        last = self._chunk({}, [])
        last["choices"][0]["finish_reason"] = self._finish_reason()
        chunks.append(last)
        if self._server.usage and (self._request.body.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": self._usage()})
        return chunks

    def _chunk(self, delta: dict[str, Any], tokens: list[_Token]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        if self._server.token_ids and self._request.body.get("return_token_ids"):
            choice["token_ids"] = [token.index for token in tokens]
        if self._request.body.get("logprobs") not in (None, False) and tokens:
            choice["logprobs"] = self._logprobs(tokens)
        return {"id": f"fake-{self._request.index}", "object": "chat.completion.chunk", "choices": [choice]}

    def _echo(self, prompt: str | list[int]) -> dict[str, Any]:
        """The prompt as the beginning of its completion; nothing predicts its first token."""
        words = self._server.tokenizer
        ids = words.encode(prompt) if isinstance(prompt, str) else prompt
        tokens = [_Token(index, text, "content") for index, text in zip(ids, words.texts(ids), strict=True)]
        chunk = self._chunk({"content": "".join(token.text for token in tokens)}, tokens)
        if logprobs := chunk["choices"][0].get("logprobs"):
            logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
        return chunk

    def _logprobs(self, tokens: list[_Token]) -> dict[str, Any]:
        texts = [token.text for token in tokens]
        if not self._chat:
            return {"tokens": texts, "token_logprobs": [-0.5] * len(texts), "top_logprobs": [{"a": -0.5}] * len(texts)}
        return {"content": [{"token": text, "logprob": -0.5, "top_logprobs": []} for text in texts]}

    def _finish_reason(self) -> str:
        if self._cut:
            return "length"
        return self._reply.finish_reason or ("tool_calls" if self._reply.tool_calls else "stop")

    def _usage(self) -> dict[str, Any]:
        body = self._request.body
        prompt = body.get("prompt")
        text = prompt if isinstance(prompt, str) else "".join(str(m["content"]) for m in body.get("messages", ()))
        asked = len(prompt) if isinstance(prompt, list) else len(self._server.tokenizer.encode(text))
        thought = sum(token.kind != "content" for token in self._kept)
        return {
            "prompt_tokens": asked,
            "completion_tokens": len(self._kept),
            "total_tokens": asked + len(self._kept),
            "prompt_tokens_details": {"cached_tokens": self._reply.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }

    async def _send_whole(self, writer: asyncio.StreamWriter) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for token in self._kept:
            message[token.kind] = message.get(token.kind, "") + token.text
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason()}
        content = json.dumps({"object": "chat.completion", "choices": [choice], "usage": self._usage()}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        await writer.drain()

    async def _event(self, writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
        await self._write(writer, f"data: {json.dumps(document, ensure_ascii=False)}\n\n")

    async def _write(self, writer: asyncio.StreamWriter, text: str) -> None:
        data = text.replace("\n", self._reply.line_ending).encode()
        size = self._reply.bytes_per_write or len(data)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            if self._reply.bytes_per_write:
                await asyncio.sleep(0)
