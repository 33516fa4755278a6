"""The body of `POST /v1/chat/completions`, as OpenAI and Zyphra's proxy name its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from openzaya.serve.config import Effort


def _a_tuple(value: Any) -> Any:
    """OpenAI takes one stop string where a list of one is meant."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


Stop = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_a_tuple), Field(max_length=16)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatMessage(BaseModel):
    """One turn. What a turn holds beyond this goes to the model as it is."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None

    def for_model(self) -> dict[str, Any]:
        """The turn as templates know it: a developer is a system."""
        values = self.model_dump(exclude_unset=True)
        return {**values, "role": "system"} if self.role == "developer" else values


class RsaFields(BaseModel):
    """The `rsa_*` fields of Zyphra's example proxy, with all their other names; None takes the service's default."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    t: int | None = Field(None, validation_alias=AliasChoices("rsa_t"))
    """Aggregation passes, the last one included; 0 is a plain reply."""
    k: int | None = Field(None, ge=1, validation_alias=AliasChoices("rsa_k"))
    n: int | None = Field(None, ge=1, validation_alias=AliasChoices("rsa_n"))
    tail_window: bool | None = Field(None, validation_alias=AliasChoices("rsa_tail_window", "rsa_use_tail_window"))
    tail_window_len: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("tail_window_len", "rsa_tail_window_len")
    )
    short_resp_len: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("short_resp_len", "rsa_short_resp_len")
    )
    pacore: bool | None = Field(None, validation_alias=AliasChoices("use_pacore", "rsa_use_pacore"))
    final_n: int | None = Field(None, ge=0, validation_alias=AliasChoices("rsa_final_n", "final_aggregation_prompts"))
    """Width of the last pass, 1 by default; 0 is N."""
    final_temperature: float | None = Field(
        None, ge=0, validation_alias=AliasChoices("final_temperature", "rsa_final_temperature")
    )
    final_top_p: float | None = Field(None, gt=0, le=1, validation_alias=AliasChoices("final_top_p", "rsa_final_top_p"))
    final_top_k: int | None = Field(None, ge=-1, validation_alias=AliasChoices("final_top_k", "rsa_final_top_k"))
    metadata: bool | None = Field(None, validation_alias=AliasChoices("return_rsa_metadata"))
    max_concurrency: int | None = Field(None, ge=0, validation_alias=AliasChoices("rsa_max_concurrency"))
    debug: Any = Field(None, validation_alias=AliasChoices("rsa_debug"))
    summarize: bool | None = Field(None, validation_alias=AliasChoices("rsa_summarize", "summarize"))
    summary_prompt: Any = Field(None, validation_alias=AliasChoices("summary_prompt"))
    aggregation_prompt: bool | None = Field(None, validation_alias=AliasChoices("return_aggregation_prompt"))

    @classmethod
    def names(cls) -> frozenset[str]:
        """Every field of a body that is one of these."""
        aliases = (field.validation_alias for field in cls.model_fields.values())
        return frozenset(str(name) for alias in aliases if isinstance(alias, AliasChoices) for name in alias.choices)

    @model_validator(mode="after")
    def _offered(self) -> RsaFields:
        if self.summarize:
            raise ValueError("summaries instead of tails are not offered; leave rsa_summarize out to pass on tails")
        if self.aggregation_prompt:
            raise ValueError("return_aggregation_prompt is not offered; leave it out")
        return self


class ChatRequest(BaseModel):
    """A request for a chat reply. Fields that are not known here are left alone and named in the reply."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    stop: Stop = ()
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    reasoning_effort: Effort | None = None
    mrsa: dict[str, Any] | None = None
    """`preset`, `progress` and settings of Markovian RSA."""
    rsa: RsaFields | None = Field(None, exclude=True, validation_alias=AliasChoices("\0rsa"))

    @model_validator(mode="before")
    @classmethod
    def _gather_rsa(cls, body: Any) -> Any:
        """Zyphra's fields lie beside OpenAI's; here they are one value."""
        if not isinstance(body, Mapping):
            return body
        unknown = sorted(name for name in body if name.startswith("rsa_") and name not in RsaFields.names())
        if unknown:
            raise ValueError(
                f"{unknown[0]} is no field of Markovian RSA; known are {', '.join(sorted(RsaFields.names()))}"
            )
        rsa = {name: value for name, value in body.items() if name in RsaFields.names()}
        rest = {name: value for name, value in body.items() if name not in rsa}
        return {**rest, "\0rsa": RsaFields.model_validate(rsa)} if rsa else rest

    @property
    def limit(self) -> int | None:
        """The token limit, under either of its names."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def ignored(self) -> list[str]:
        """Fields of the body that nothing here reads."""
        return sorted(self.model_extra or ())
