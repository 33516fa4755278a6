"""Conversations of several turns as the chat template writes them, split to the token by who speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from openzaya.chat import ChatTemplate, Tokenizer, control, encode_chat
from openzaya.data.trimming import Turn

Learned = Literal["last", "every"]
"""The replies after the last user message, or all of them."""

_FRAME_BREAKS = 2
"""Line breaks that the template writes between the reasoning and the answer."""


def conversation_turns(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    learned: Learned = "last",
    earlier_reasoning: bool = False,
) -> list[Turn]:
    """One turn a reply; their ids, one behind the other, are those of `encode_chat` up to the last reply.

    ZAYA's template leaves out the reasoning of replies before the last user message, so with `every` those are learned
    without it, as a reply that does not think. With `earlier_reasoning` each reply has its reasoning, written as when
    it was the last one. Raises ValueError for a conversation without a reply, and for a template that does not frame
    each message as ChatML does.
    """
    replies = [place for place, message in enumerate(messages) if message.get("role") == "assistant"]
    if not replies:
        raise ValueError("the conversation has no reply to learn; give at least one assistant message")
    # What follows the last reply is never learned, and would make the template treat that reply as an earlier one.
    messages = messages[: replies[-1] + 1]
    ids = encode_chat(tokenizer, template, messages, tools=tools, add_generation_prompt=False)
    turns = _split(ids, tokenizer)
    if len(turns) != len(replies):
        raise ValueError(
            f"the chat template shows {len(turns)} of {len(replies)} replies as <|im_start|>assistant turns; "
            "only templates in the form of ChatML can be split by role"
        )
    if earlier_reasoning:
        for number, place in enumerate(replies[:-1]):
            until = encode_chat(tokenizer, template, messages[: place + 1], tools=tools, add_generation_prompt=False)
            turns[number] = replace(_split(until, tokenizer)[-1], prompt=turns[number].prompt)
    last_user = max((place for place, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    return [
        turn if learned == "every" or place > last_user else replace(turn, learned=False)
        for turn, place in zip(turns, replies)
    ]


def _split(ids: Sequence[int], tokenizer: Tokenizer) -> list[Turn]:
    turn_open = tokenizer.control_tokens.get(control.TURN_OPEN)
    starts = [place for place, token in enumerate(ids) if token == turn_open] + [len(ids)]
    turns, prompt = [], list(ids[: starts[0]])
    for start, end in pairwise(starts):
        message = list(ids[start:end])
        header = _header_length(message, tokenizer)
        prompt += message[:header]
        role = tokenizer.decode(message[1:header]).partition("\n")[0]
        if role == "assistant":
            turns.append(_turn(prompt, message[header:], tokenizer))
            prompt = []
        else:
            prompt += message[header:]
    return turns


def _header_length(message: Sequence[int], tokenizer: Tokenizer) -> int:
    """Tokens up to the one that ends the line of the role; a line break merged into it counts as read, not as said."""
    for place, token in enumerate(message):
        if b"\n" in tokenizer.token_bytes(token):
            return place + 1
    return len(message)


def _turn(prompt: Sequence[int], reply: Sequence[int], tokenizer: Tokenizer) -> Turn:
    think_close = tokenizer.think_close_id
    if think_close is None or not reply or reply[0] != tokenizer.think_open_id or think_close not in reply:
        return Turn(tuple(prompt), (), (), (), tuple(reply))
    close = list(reply).index(think_close)
    body = 1 + (tokenizer.token_bytes(reply[1]) == b"\n")
    end, breaks = close + 1, 0
    for token in reply[close + 1 :]:
        text = tokenizer.token_bytes(token)
        breaks += len(text)
        if text.strip(b"\n") or breaks > _FRAME_BREAKS:
            break
        end += 1
    return Turn(
        tuple(prompt), tuple(reply[:body]), tuple(reply[body:close]), tuple(reply[close:end]), tuple(reply[end:])
    )
