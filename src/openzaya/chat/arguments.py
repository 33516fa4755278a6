"""Typing of tool-call arguments, which a reply writes as bare text, by the JSON schemas that the tools declare."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


class ToolSchemas:
    """The parameter schemas of the declared tools, by function name."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        functions = [tool.get("function", tool) for tool in tools]
        self._parameters: dict[str, Schema] = {
            function["name"]: function.get("parameters") or {} for function in functions if "name" in function
        }

    def typed(self, function: str, arguments: Mapping[str, str]) -> dict[str, Any]:
        """The arguments as values; a text that fits no declared type, or has none declared, stays a string."""
        root = self._parameters.get(function, {})
        properties = root.get("properties") or {}
        return {name: typed_value(text, properties.get(name, {}), root) for name, text in arguments.items()}


def declared_types(schema: Schema, root: Schema) -> set[str]:
    """The JSON types that `schema` allows, or those of what it refers to or offers; none where it says none."""
    return {name for option in _alternatives(schema, root) for name in _types_of(option)}


def typed_value(text: str, schema: Schema, root: Schema | None = None) -> Any:
    """`text` as the JSON value that `schema` allows, else as it is; `root` resolves `$ref`.

    Where a schema allows strings and something narrower, the narrower reading wins if the text has it.
    """
    options = _alternatives(schema, root or schema)
    for option in options:
        for member in option.get("enum", [option["const"]] if "const" in option else []):
            if text == member or (not isinstance(member, str) and text == json.dumps(member, ensure_ascii=False)):
                return member
    types = {name for option in options for name in _types_of(option)}
    for name, read in _READERS:
        if name in types:
            try:
                return read(text)
            except (ValueError, RecursionError):
                continue
    return text


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """The schema itself and those it refers to or offers, each once, even where they refer to each other in circles."""
    found: dict[int, Schema] = {}
    waiting: list[Any] = [schema]
    while waiting:
        option = waiting.pop()
        if not isinstance(option, Mapping) or id(option) in found:
            continue
        found[id(option)] = option
        waiting.append(_referred_to(option.get("$ref"), root))
        for keyword in ("anyOf", "oneOf", "allOf"):
            waiting.extend(option.get(keyword) or ())
    return list(found.values())


def _referred_to(reference: Any, root: Schema) -> Any:
    """What a local reference such as `#/$defs/Point` stands for, or None."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    target: Any = root
    for step in reference[1:].split("/")[1:]:
        target = target.get(step) if isinstance(target, Mapping) else None
    return target


def _types_of(schema: Schema) -> list[str]:
    declared = schema.get("type")
    if isinstance(declared, str):
        return [declared]
    if isinstance(declared, list):
        return [name for name in declared if isinstance(name, str)]
    return ["object"] if "properties" in schema else ["array"] if "items" in schema else []


def _null(text: str) -> None:
    if text.strip().lower() not in ("null", "none"):
        raise ValueError(text)


def _boolean(text: str) -> bool:
    # Models also write Python's spelling.
    try:
        return {"true": True, "false": False}[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def _integer(text: str) -> int:
    value = _json(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(text)
    return int(value)


def _number(text: str) -> int | float:
    value = _json(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(text)
    return value


def _object(text: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _array(text: str) -> list[Any]:
    value = _json(text)
    if not isinstance(value, list):
        raise ValueError(text)
    return value


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the range of a number")
    return value


_READERS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("null", _null),
    ("boolean", _boolean),
    ("integer", _integer),
    ("number", _number),
    ("object", _object),
    ("array", _array),
)
