"""A scripted OpenAI-compatible server for tests: see `FakeServer`."""

from fake_openai.script import Failure, Reply, Request, ToolCall
from fake_openai.server import FakeServer
from fake_openai.words import WordTokenizer

__all__ = ["Failure", "FakeServer", "Reply", "Request", "ToolCall", "WordTokenizer"]
