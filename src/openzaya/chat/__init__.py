"""How ZAYA1 speaks: tokens, the chat template, reasoning apart from answers, and tool calls."""

from __future__ import annotations

from openzaya.chat.encoding import encode_chat, encode_reply
from openzaya.chat.reasoning import Piece, ReasoningSplitter, split_reasoning
from openzaya.chat.template import ChatTemplate, render_reply
from openzaya.chat.tokenizer import IncrementalDecoder, Tokenizer
from openzaya.chat.tools import ToolCall, ToolCallParser, parse_tool_calls, render_tool_calls
from openzaya.chat.train_tokenizer import train_tokenizer

__all__ = [
    "ChatTemplate",
    "IncrementalDecoder",
    "Piece",
    "ReasoningSplitter",
    "Tokenizer",
    "ToolCall",
    "ToolCallParser",
    "encode_chat",
    "encode_reply",
    "parse_tool_calls",
    "render_reply",
    "render_tool_calls",
    "split_reasoning",
    "train_tokenizer",
]
