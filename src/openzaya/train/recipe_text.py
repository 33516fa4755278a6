"""A recipe as TOML text, which `read_train_config` reads back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def toml_text(values: Mapping[str, Any]) -> str:
    """A recipe as TOML; keys that are not set are left out, as TOML has no word for nothing."""
    return "\n".join(_toml_lines(values, ())).strip() + "\n"


def _toml_lines(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if _is_table(value)}
    for key, value in values.items():
        if key not in tables and value is not None:
            yield f"{_key(key)} = {_literal(value)}"
    for key, value in tables.items():
        inner = (*path, _key(key))
        for entry in value if isinstance(value, list) else [value]:
            brackets = ("[[", "]]") if isinstance(value, list) else ("[", "]")
            yield ""
            yield f"{brackets[0]}{'.'.join(inner)}{brackets[1]}"
            yield from _toml_lines(entry, inner)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _key(name: str) -> str:
    bare = name and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    return name if bare else json.dumps(name)


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_literal(each) for each in value)}]"
    # JSON's strings, numbers and truth values are TOML's too.
    return json.dumps(value)
