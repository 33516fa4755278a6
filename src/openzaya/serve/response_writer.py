"""One response from its beginning to its end: its document at any moment, and its events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from openzaya.backends.protocol import Usage
from openzaya.serve.conversation import Outcome, Piece, Progress, Update
from openzaya.serve.errors import ApiError
from openzaya.serve.event_log import EventLog
from openzaya.serve.guard import told
from openzaya.serve.response_output import Output, resumed
from openzaya.serve.response_request import ResponseRequest
from openzaya.serve.store import Job

_ENDS = ("response.completed", "response.incomplete", "response.failed")


class ResponseWriter:
    """Told what happens to a job, it writes the document and the log of its events."""

    def __init__(self, job: Job, asked: ResponseRequest, log: EventLog) -> None:
        self.log = log
        self._head = head_of(job, asked)
        self._output = Output()
        self._status = "queued" if job.background else "in_progress"
        self._ended = False
        self._final: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """The response as it stands, without output before its end."""
        return self._final or {**self._head, "status": self._status}

    async def open(self) -> None:
        """Begin, or go on behind the events of an earlier service."""
        before = [json.loads(text) for text in await self.log.restore()]
        if before:
            self._output, events = resumed(before)
            self._ended = before[-1]["type"] in _ENDS
            self.log.add(events)
        else:
            self.log.add([self._event("response.created")])
            if self._status == "queued":
                self.log.add([self._event("response.queued")])
        if self._status == "in_progress":
            self.log.add([self._event("response.in_progress")])

    def tell(self, update: Update) -> None:
        """Take what the work tells."""
        if self._status == "queued":
            self._status = "in_progress"
            self._add([self._event("response.in_progress")])
        if isinstance(update, Progress):
            self._add(self._output.progress(update))
        elif isinstance(update, Piece):
            self._add(self._output.piece(update))

    def result_of(self, ended: Outcome | BaseException) -> Mapping[str, Any]:
        """What is kept of how the job ended; with it the log ends too."""
        if isinstance(ended, Outcome):
            document = self._done(ended)
            result = {"outcome": ended.as_json(), "document": document}
        else:
            document = self._broken_off(ended)
            result = {"document": document}
        self._final = document
        self.close()
        return result

    def close(self) -> None:
        """No further event will come from here."""
        self.log.close()

    def _done(self, outcome: Outcome) -> dict[str, Any]:
        choice = outcome.choices[0]
        self._add(self._output.end(choice))
        whole = choice.finish_reason != "length"
        document = {
            **self._head,
            "status": "completed" if whole else "incomplete",
            "output": self._output.items,
            "usage": usage_of(outcome.usage, outcome.cost),
        }
        if whole:
            document["completed_at"] = int(time.time())
        else:
            document["incomplete_details"] = {"reason": "max_output_tokens"}
        if outcome.reports:
            document["mrsa"] = outcome.reports[0]
        self._add([{"type": "response.completed" if whole else "response.incomplete", "response": document}])
        return document

    def _broken_off(self, error: BaseException) -> dict[str, Any]:
        self._add(self._output.break_off())
        if isinstance(error, asyncio.CancelledError):
            document = {**self._head, "status": "cancelled"}
            self._add([{"type": "response.incomplete", "response": document}])
            return document
        document = {**self._head, "status": "failed", "error": error_of(told(error))}
        self._add([{"type": "response.failed", "response": document}])
        return document

    def _add(self, events: list[dict[str, Any]]) -> None:
        if not self._ended:  # an earlier service may have told the end before it could keep it
            self.log.add(events)

    def _event(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "response": self.document()}


def head_of(job: Job, asked: ResponseRequest) -> dict[str, Any]:
    """The fields of a response that do not change; in OpenAI's shape."""
    effort = None if asked.reasoning is None else asked.reasoning.effort
    form = (asked.text and asked.text.format) or {"type": "text"}
    head: dict[str, Any] = {
        "id": job.id,
        "object": "response",
        "created_at": int(job.created),
        "status": "in_progress",
        "background": job.background,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": effort, "summary": None},
        "store": asked.kept,
        "temperature": asked.temperature,
        "text": {"format": form},
        "tool_choice": asked.tool_choice if asked.tool_choice is not None else "auto",
        "tools": [{"strict": None, "parameters": None, **tool} for tool in asked.tools or ()],
        "top_p": asked.top_p,
        "truncation": "disabled",
        "metadata": asked.metadata or {},
    }
    return {**head, "ignored_fields": asked.ignored} if asked.ignored else head


def usage_of(usage: Usage, cost: float | None) -> dict[str, Any]:
    """Every token of every rollout, in the shape of this API."""
    values: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return values if cost is None else {**values, "cost": cost}


def error_of(error: ApiError) -> dict[str, Any]:
    """A failure in the words that this API has for them."""
    code = "server_error" if error.status >= 500 else "invalid_prompt"
    return {"code": "rate_limit_exceeded" if error.status == 429 else code, "message": error.message}
