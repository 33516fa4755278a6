"""A run as one file: what it holds, and that nothing in it can break out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace

from openzaya.backends.protocol import Usage
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.config import preset
from openzaya.mrsa.journal import End, Header, Journal
from openzaya.mrsa.tails import Tail
from openzaya.serve.run_page import json_in_script, page_of

HOSTILE = "</script><script>window.broken = true</script><!--<script> \u2028 {{records}} \ud83d &lt;"


def journal(*, end: bool = True, text: str = "It is \\boxed{4}.", question: str = "2 + 2?") -> Journal:
    config = preset("tiny", candidates=2, tails=1, rounds=1, beta=10, tau=5, final_tokens=10)
    header = Header(
        question_hash="", config_hash="", model="scripted", messages=[{"role": "user", "content": question}],
        config=config.model_dump(), task="math", controls={"forces_final": False},
    )  # fmt: skip
    rollouts = tuple(
        Candidate(
            round=round,
            index=index,
            seed=index,
            tails_read=(index,) if round else (),
            finish_reason="stop",
            usage=Usage(prompt_tokens=5, completion_tokens=7),
            started=float(round),
            seconds=1.0,
            tail=Tail(text, 5, "ids"),
            reasoning=f"first {text}",
            content=text,
            answer="4",
        )
        for round in range(2)
        for index in range(2)
    )
    return Journal(header, rollouts, End(finish_reason="answered", seconds=2.0) if end else None)


def records_in(page: str) -> list[dict]:
    (text,) = re.findall(r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_a_page_holds_every_record_with_its_whole_text() -> None:
    records = records_in(asyncio.run(page_of(journal())))
    assert [record["kind"] for record in records] == ["header", *["rollout"] * 4, "end"]
    assert records[1]["reasoning"] == "first It is \\boxed{4}."
    assert records[-1]["chosen"] == [1, 0]


def test_a_run_that_had_not_ended_has_no_end() -> None:
    records = records_in(asyncio.run(page_of(journal(end=False))))
    assert records[-1]["kind"] == "rollout"


def test_a_run_whose_rollouts_are_missing_is_drawn_as_far_as_it_goes() -> None:
    whole = journal()
    records = records_in(asyncio.run(page_of(replace(whole, attempts=whole.attempts[:3]))))
    assert [record["kind"] for record in records] == ["header", *["rollout"] * 3]


def test_nothing_that_a_model_writes_leaves_its_place() -> None:
    plain = asyncio.run(page_of(journal()))
    page = asyncio.run(page_of(journal(text=HOSTILE, question=HOSTILE)))
    assert page.count("<script") == plain.count("<script") == 2
    assert page.count("</script") == plain.count("</script") == 2
    assert "window.broken" in page
    said = HOSTILE.encode("utf-8", "replace").decode()
    assert records_in(page)[1]["content"] == said
    assert "</script>" not in re.search(r"<title>(.*?)</title>", page, re.DOTALL)[1]


def test_json_in_a_script_reads_back_as_it_was() -> None:
    assert json.loads(json_in_script([HOSTILE]))[0] == HOSTILE.encode("utf-8", "replace").decode()
    assert not set("<>&\u2028") & set(json_in_script([HOSTILE]))


def test_the_policy_names_the_script_and_the_style_by_their_hashes() -> None:
    page = asyncio.run(page_of(journal()))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, open_tag, close_tag in (("script", "<script>", "</script>"), ("style", "<style>", "</style>")):
        text = page.split(open_tag)[1].split(close_tag)[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r'(src|href)="(?!#)', page.split('id="records"')[0])


def test_drawing_needs_nothing_of_the_service() -> None:
    code = (
        "import sys, openzaya.serve.run_page; sys.exit(not {'starlette', 'uvicorn', 'torch'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
