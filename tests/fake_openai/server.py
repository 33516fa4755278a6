"""The fake server itself: HTTP/1.1 over asyncio in a thread of its own, nothing beyond the standard library."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

from fake_openai.script import Answer, Failure, Request, Script, Style, answer_for
from fake_openai.streams import ReplyWriter
from fake_openai.words import WordTokenizer

TokenizeStyle = Literal["vllm", "sglang", "llamacpp", "wrong_shape"]


class ClientLeftError(Exception):
    """The client closed the connection while it was being answered."""


class FakeServer:
    """A scripted server on the loopback. Works in synchronous and asynchronous tests alike:

        with FakeServer(Reply(reasoning="2 and 2", content="4")) as server:
            ...                       # talk to server.url ("http://127.0.0.1:PORT/v1")
            server.requests[0].body   # what was asked
            server.aborts             # requests whose client left before the end

    `script` is a reply, a list of replies, or a function of the request (see `fake_openai.script`). `requests` holds
    only requests for completions; `other_requests` holds those to /models, /tokenize and the like. `vendor` is the
    `owned_by` of its models ("vllm", "sglang", "llamacpp" change what the backend sends). With `token_ids` it honours
    `return_token_ids`; `tokenize` offers the endpoints in one server's shape; `template_opens_thinking` decides what a
    rendered prompt ends with. `refuses` maps fields of the body to the status with which they are refused, in the words
    of `refusal_style`. With `api_key` other keys get 401.
    """

    def __init__(
        self,
        script: Script,
        *,
        style: Style = "reasoning_content",
        models: tuple[str, ...] = ("fake",),
        vendor: str = "fake",
        context: int | None = 32768,
        usage: bool = True,
        token_ids: bool = False,
        tokenize: TokenizeStyle | None = None,
        template_opens_thinking: bool = False,
        refuses: Mapping[str, int] | None = None,
        refusal_style: Literal["openai", "pydantic", "transformers"] = "openai",
        api_key: str | None = None,
        tokenizer: WordTokenizer | None = None,
        port: int = 0,
    ) -> None:
        self.script = script
        self.style = style
        self.models = models
        self.vendor = vendor
        self.context = context
        self.usage = usage
        self.token_ids = token_ids
        self.tokenize = tokenize
        self.template_opens_thinking = template_opens_thinking
        self.refuses = dict(refuses or {})
        self.refusal_style = refusal_style
        self.api_key = api_key
        self.tokenizer = tokenizer or WordTokenizer()
        self.requests: list[Request] = []
        self.other_requests: list[Request] = []
        self.most_at_once = 0
        """The largest number of completions that were open at the same time."""
        self.port = port
        self.connections = 0
        """That are open now, busy or idle."""
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-openai", daemon=True)
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """The base URL, with `/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def aborts(self) -> list[Request]:
        """Requests for completions whose client left before the end."""
        return [request for request in self.requests if request.aborted]

    @property
    def open_now(self) -> int:
        """Completions that are being answered."""
        return self._open

    def wait_until(self, condition: Callable[[FakeServer], bool], seconds: float = 30.0) -> None:
        """Wait for what the server will see; raises AssertionError when it does not in time. Blocks the thread."""
        end = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < end, f"not within {seconds} s; requests: {self.requests}"
            time.sleep(0.005)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10), "the fake server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                await self._connection(reader, writer)
            finally:
                self.connections -= 1
                tasks.discard(task)
                writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", self.port, limit=64 << 20)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after another."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ClientLeftError):
            while (request := await _read_request(reader)) is not None:
                await self._answer(request, reader, writer)
                if writer.is_closing():
                    return

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not request.path.endswith("/completions"):
            self.other_requests.append(request)
            status, document = self._describe(request)
            await _send_json(writer, status, document)
            return
        request.index = len(self.requests)
        self.requests.append(request)
        answer = self._refusal(request) or answer_for(self.script, request)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            await _unless_client_leaves(reader, self._send(request, answer, writer))
            request.answered = True
        except (ClientLeftError, ConnectionError):
            request.aborted = True
            writer.close()
        finally:
            self._open -= 1

    async def _send(self, request: Request, answer: Answer, writer: asyncio.StreamWriter) -> None:
        if isinstance(answer, Failure):
            await _send_json(writer, answer.status, answer.json(), answer.headers)
            return
        await ReplyWriter(self, request, answer).send(writer)

    def _refusal(self, request: Request) -> Failure | None:
        """The failure that the headers or fields of a request earn before any script is asked."""
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            given = request.headers.get("authorization", "none")
            return Failure(status=401, message=f"Incorrect API key provided: {given}", code="invalid_api_key")
        chat = "messages" in request.body
        if request.body.get("model") not in self.models:
            return Failure(status=404, message=f"The model `{request.body.get('model')}` does not exist.")
        refused = sorted(name for name in self.refuses if name in request.body)
        if not refused:
            return None
        status = self.refuses[refused[0]]
        if self.refusal_style == "transformers":
            return Failure(status=status, body={"detail": f"Unexpected fields in the request: {set(refused)}"})
        if self.refusal_style == "pydantic":
            error = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted", "input": 1}
            return Failure(status=status, body={"detail": [{**error, "loc": ["body", name]} for name in refused]})
        if refused[0] in ("max_tokens", "max_completion_tokens") and chat:
            other = {"max_tokens": "max_completion_tokens"}.get(refused[0], "max_tokens")
            message = f"Unsupported parameter: '{refused[0]}' is not supported with this model. Use '{other}' instead."
            return Failure(status=status, message=message, code="unsupported_parameter", param=refused[0])
        message = f"Unrecognized request argument supplied: {refused[0]}"
        return Failure(status=status, message=message, param=None)

    def _describe(self, request: Request) -> tuple[int, Any]:
        """Answers to everything but completions."""
        path = request.path
        if path == "/v1/models":
            entry = {"object": "model", "owned_by": self.vendor, "max_model_len": self.context}
            return 200, {"object": "list", "data": [{"id": model, **entry} for model in self.models]}
        if path == "/props" and self.vendor == "llamacpp":
            return 200, {"default_generation_settings": {"n_ctx": self.context}}
        if path == "/apply-template" and self.vendor == "llamacpp":
            return 200, {"prompt": self._rendered()}
        if path == ("/v1/tokenize" if self.tokenize == "sglang" else "/tokenize") and self.tokenize:
            return self._encode(request.body)
        if path == ("/v1/detokenize" if self.tokenize == "sglang" else "/detokenize") and self.tokenize:
            field = {"vllm": "prompt", "sglang": "text", "llamacpp": "content"}.get(self.tokenize, "nothing")
            return 200, {field: self.tokenizer.decode(request.body["tokens"])}
        return 404, {"detail": "Not Found"}

    def _encode(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        if self.tokenize == "wrong_shape":
            return 200, {"tokens": "1 2 3"}
        if self.tokenize == "llamacpp":
            return 200, {"tokens": self.tokenizer.encode(body.get("content", ""))}
        if "messages" in body and self.tokenize == "vllm":
            ids = self.tokenizer.encode(self._rendered())
        elif "prompt" in body:
            ids = self.tokenizer.encode(body["prompt"])
        else:
            return 400, {"error": {"message": "Field required: prompt"}}
        return 200, {"tokens": ids, "count": len(ids), "max_model_len": self.context}

    def _rendered(self) -> str:
        thinks = "<think>\n" if self.template_opens_thinking else ""
        return f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{thinks}"


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection, None at its end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(-1, method, path, headers, json.loads(content) if content else None)


async def _unless_client_leaves(reader: asyncio.StreamReader, sending: Any) -> None:
    """Send an answer; raises ClientLeftError as soon as the client closes the connection."""
    send = asyncio.ensure_future(sending)
    # A client that waits for its answer sends nothing: what can be read is the end of the connection.
    leave = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({send, leave}, return_when=asyncio.FIRST_COMPLETED)
        if not send.done():
            raise ClientLeftError
        await send
    finally:
        for task in (send, leave):
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await task


async def _send_json(
    writer: asyncio.StreamWriter, status: int, document: Any, headers: Mapping[str, str] | None = None
) -> None:
    content = (document if isinstance(document, str) else json.dumps(document)).encode()
    lines = [f"HTTP/1.1 {status} Scripted", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
    await writer.drain()
