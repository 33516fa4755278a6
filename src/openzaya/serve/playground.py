"""The playground: its page, and the addresses of runs that the page reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openzaya.serve.errors import ApiError, refused
from openzaya.serve.run_page import DRAWING, STYLE, page_file, page_of
from openzaya.serve.run_records import Record, RecordWriter
from openzaya.serve.runs import Runs
from openzaya.serve.service import Service
from openzaya.serve.streaming import EventStream

_SCRIPTS = (*DRAWING, "feed.js", "composer.js", "app.js")
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class Playground:
    """The addresses of the playground over a service."""

    def __init__(self, service: Service, runs: Runs) -> None:
        self._service = service
        self._runs = runs

    def routes(self) -> Iterator[Route]:
        """The page and its files are open to everyone; the runs are for those with a key."""
        yield Route("/", _file("index.html"))
        for name in (STYLE, "icon.svg", *_SCRIPTS):
            yield Route(f"/page/{name}", _file(name))
        yield Route("/runs", self.start, methods=["POST"])
        yield Route("/runs/{id}/events", self.watch)
        yield Route("/runs/{id}/cancel", self.cancel, methods=["POST"])
        yield Route("/runs/{id}/rollouts/{round:int}/{index:int}", self.rollout)
        yield Route("/runs/{id}/page", self.export)

    async def start(self, request: Request) -> Response:
        """Start a run from the body of a chat request; it goes on when the client leaves."""
        run_id = await self._runs.start(request)
        return JSONResponse({"id": run_id, "object": "run"}, status_code=202)

    async def watch(self, request: Request) -> Response:
        """The records of a run as events, those after `after` of them and then what comes."""
        after = request.query_params.get("after", "0")
        if not after.isdecimal():
            raise refused(f"after is {after!r}; give the number of records that are known already", param="after")
        records = await self._runs.watch(request.state.key, request.path_params["id"], int(after))
        return EventStream(_frames(records), on_close=_nothing, keep_alive=self._service.config.keep_alive)

    async def cancel(self, request: Request) -> Response:
        """End a run; what has finished is kept."""
        await self._runs.stop(request.state.key, request.path_params["id"])
        return JSONResponse({"id": request.path_params["id"], "object": "run"})

    async def rollout(self, request: Request) -> Response:
        """One rollout of a run with its whole reasoning, which the events leave out."""
        journal = await self._runs.journal(request.state.key, request.path_params["id"])
        place = request.path_params["round"], request.path_params["index"]
        found = journal.latest().get(place)
        if found is None:
            raise ApiError(404, f"the run has no rollout {place[1]} of round {place[0]}", code="rollout_not_found")
        return _json(RecordWriter(whole=True).rollout(found))

    async def export(self, request: Request) -> Response:
        """The run as one file."""
        run_id = request.path_params["id"]
        page = await page_of(await self._runs.journal(request.state.key, run_id))
        headers = {
            "content-disposition": f'attachment; filename="{run_id}.html"',
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox",  # opened from here it would share the origin of the service
        }
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    """What sends one file of the page."""
    text = page_file(name)
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    kind = f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8"

    async def send(request: Request) -> Response:
        headers = {**_HEADERS, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(text, media_type=kind, headers=headers)

    return send


def _json(document: Record) -> Response:
    content = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, media_type="application/json")


async def _frames(records: AsyncIterator[tuple[int, Record]]) -> AsyncIterator[bytes]:
    async for number, record in records:
        data = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        yield f"id: {number}\ndata: {data}\n\n".encode("utf-8", "replace")


async def _nothing() -> None:
    """A watcher that leaves changes nothing."""
