"""What a refusal says to a person."""

from __future__ import annotations

import json

import pytest

from openzaya.backends.failures import ServerMessage, read_server_message, status_failure

URL = "http://host/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "bad top_k", "code": 400}}, "bad top_k"),
        ({"error": "bad top_k"}, "bad top_k"),
        ({"object": "error", "message": "bad top_k", "code": 400}, "bad top_k"),
        ({"detail": "bad top_k"}, "bad top_k"),
        ({"detail": [{"loc": ["body", "top_k"], "msg": "not permitted"}]}, "body.top_k: not permitted"),
        ("bad top_k", "bad top_k"),
    ],
)
def test_the_explanation_is_found_in_every_servers_shape(body: object, text: str) -> None:
    assert read_server_message(json.dumps(body).encode()).text == text


def test_plain_text_is_the_explanation_on_one_bounded_line() -> None:
    message = read_server_message(b"<html>\n  Bad   Gateway\n" + b"x" * 5000).text
    assert message.startswith("<html> Bad Gateway xxx")
    assert len(message) <= 301


@pytest.mark.parametrize(("status", "retry"), [(400, False), (401, False), (403, False), (404, False), (422, False)])
def test_what_the_client_did_wrong_is_not_tried_again(status: int, retry: bool) -> None:
    assert status_failure(status, URL, ServerMessage("no")).retry is retry


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert status_failure(status, URL, ServerMessage("no")).retry is True


def test_an_empty_account_is_not_tried_again_though_it_answers_429() -> None:
    failure = status_failure(429, URL, ServerMessage("You exceeded your quota", "insufficient_quota"))
    assert failure.retry is False
    assert "no credit" in str(failure)


def test_401_names_the_variable_to_set_or_to_check() -> None:
    unset = status_failure(401, URL, ServerMessage("no key"), api_key_env="MY_KEY", key_was_sent=False)
    wrong = status_failure(401, URL, ServerMessage("bad key"), api_key_env="MY_KEY", key_was_sent=True)
    assert (
        str(unset) == f"{URL} answered 401: no key (check that the environment variable MY_KEY is set; no key was sent)"
    )
    assert "MY_KEY holds a key that this server accepts" in str(wrong)
