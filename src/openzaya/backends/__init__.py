"""Where tokens come from: the embedded engine, or any OpenAI-compatible server."""

from openzaya.backends.protocol import (
    Backend,
    BackendError,
    Capabilities,
    ChatParams,
    Delta,
    Message,
    Reply,
    ToolCallDelta,
    Usage,
    collect,
)

__all__ = [
    "Backend",
    "BackendError",
    "Capabilities",
    "ChatParams",
    "Delta",
    "Message",
    "Reply",
    "ToolCallDelta",
    "Usage",
    "collect",
]
