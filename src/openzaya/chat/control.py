"""The control tokens of ZAYA's chat format, by name."""

from __future__ import annotations

PAD = "<pad>"
DOCUMENT_END = "<eos>"
BOS = "<bos>"
TURN_OPEN = "<|im_start|>"
TURN_CLOSE = "<|im_end|>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
TOOL_CALL_OPEN = "<zyphra_tool_call>"
TOOL_CALL_CLOSE = "</zyphra_tool_call>"
TOOL_RESPONSE_OPEN = "<zyphra_tool_response>"
TOOL_RESPONSE_CLOSE = "</zyphra_tool_response>"

STRUCTURE = (PAD, DOCUMENT_END, BOS, TURN_OPEN, TURN_CLOSE)
"""Tokens that frame documents and turns; readable text never shows them."""

MARKUP = (THINK_OPEN, THINK_CLOSE, TOOL_CALL_OPEN, TOOL_CALL_CLOSE, TOOL_RESPONSE_OPEN, TOOL_RESPONSE_CLOSE)
"""Tokens inside a turn that readers of the text split it by, so decoding keeps them."""

CONTROL = STRUCTURE + MARKUP
"""In the order of their ids where `train_tokenizer` made the vocabulary: pad 0, document end 1, bos 2 as in ZAYA1."""
