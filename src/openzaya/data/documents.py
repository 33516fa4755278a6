"""Rows of a corpus to documents: token ids, who speaks where, and whether the document is held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast, get_args

from openzaya.chat import ChatTemplate, Tokenizer, control
from openzaya.data.conversations import conversation_turns
from openzaya.data.corpora import CorpusRecipe
from openzaya.data.trimming import Turn
from openzaya.mrsa.prompts import TASKS, Prompts, Task, aggregation_messages, detect_task, question_text

_ROLES = {"human": "user", "gpt": "assistant", "function_response": "tool"}
"""Of ShareGPT's `from`, where they differ."""

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation turn by turn, or a plain text, which is one turn of nothing but an answer."""

    turns: tuple[Turn, ...]
    text: bool
    held_out: bool

    def __len__(self) -> int:
        return sum(map(len, self.turns))


@dataclass(frozen=True, slots=True)
class DocumentReader:
    """Turns rows into documents as a recipe says."""

    recipe: CorpusRecipe
    tokenizer: Tokenizer
    template: ChatTemplate
    prompts: Prompts

    def read(self, row: Mapping[str, Any]) -> Document | str:
        """The document of a row, or why there is none. Raises ValueError for a row that lacks what the recipe names."""
        if not self.recipe.conversations:
            return self._text(row)
        messages: Sequence[Message] = conversation_of(self.recipe, row)
        if not any(message.get("role") == "assistant" for message in messages):
            return "without a reply"
        asked = opening_of(messages)
        held_out = self._held_out(json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str))
        if self.recipe.tails is not None:
            messages = self._wrapped(messages, row)
        turns = conversation_turns(
            messages,
            self.tokenizer,
            self.template,
            tools=self._tools(row),
            learned=self.recipe.learned,
            earlier_reasoning=self.recipe.earlier_reasoning,
        )
        if not any(turn.learned for turn in turns):
            return "without a learned reply"
        return Document(tuple(turns), False, held_out)

    def _text(self, row: Mapping[str, Any]) -> Document | str:
        # Lone surrogates come from broken escapes in web data; they are no text.
        text = str(_field(row, self.recipe.text_field or "text")).encode(errors="replace").decode()
        if not text.strip():
            return "empty"
        tokenizer = self.tokenizer
        end = tokenizer.id_of(control.DOCUMENT_END)
        if end is None:
            end = tokenizer.id_of(tokenizer.eos_token)
        ids = [tokenizer.bos_id, *tokenizer.encode(text, special=False), end]
        turn = Turn((), (), (), (), tuple(index for index in ids if index is not None))
        return Document((turn,), True, self._held_out(text))

    def _tools(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        if self.recipe.tools is None or not row.get(self.recipe.tools):
            return ()
        return cast(list[Mapping[str, Any]], _as_list(row[self.recipe.tools], self.recipe.tools))

    def _wrapped(self, messages: Sequence[Message], row: Mapping[str, Any]) -> list[Message]:
        field = self.recipe.tails or "tails"
        tails = [str(tail) for tail in _as_list(_field(row, field), field)]
        task: Any = row.get("task") if self.recipe.task == "field" else self.recipe.task
        if task == "auto":
            task = detect_task(question_text(messages))
        if task not in get_args(Task):
            raise ValueError(f"the task is {task!r}; it must be one of {', '.join(TASKS)}")
        return list(aggregation_messages(messages, tails, cast(Task, task), self.prompts))

    def _held_out(self, content: str) -> bool:
        digest = blake2b(content.encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.recipe.held_out * 2**64


def conversation_of(recipe: CorpusRecipe, row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row, before any tails are put into them. Raises ValueError where the row has none."""
    if recipe.question is None:
        field = recipe.messages or "messages"
        return [_message(message, field) for message in _as_list(_field(row, field), field)]
    reply = {"role": "assistant", "content": str(_field(row, recipe.answer or ""))}
    if recipe.reasoning is not None and row.get(recipe.reasoning):
        reply["reasoning_content"] = str(row[recipe.reasoning])
    return [{"role": "user", "content": str(_field(row, recipe.question))}, reply]


def opening_of(messages: Sequence[Message]) -> Sequence[Message]:
    """What a conversation begins with, up to its first reply."""
    first = next((place for place, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return messages[:first]


def _field(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        # Blank rows are no documents; rows without the field are another corpus.
        if not row or name in row:
            return ""
        raise ValueError(f"there is no field {name!r}; the fields are {', '.join(row)}")
    return row[name]


def _as_list(value: Any, field: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else []
        except ValueError:
            raise ValueError(f"the field {field!r} is text that is no JSON; it must be a list") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"the field {field!r} is a {type(value).__name__}; it must be a list")
    return list(value)


def _message(given: Any, field: str) -> Message:
    if not isinstance(given, Mapping):
        raise ValueError(f"the field {field!r} holds a {type(given).__name__}; it must hold messages")
    # Columns of records fill the keys that a message does not have with nulls.
    message = {name: value for name, value in given.items() if value is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        return {"role": _ROLES.get(role, role), "content": message.pop("value", "")}
    if not isinstance(message.get("role"), str):
        raise ValueError(f"a message in {field!r} has the keys {', '.join(message)}; it needs role and content")
    return {"content": "", **message}
