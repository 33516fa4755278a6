"""What the page makes of records and of texts, script by script, in a browser without any service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import launched, page_of
from test_run_page import journal

from openzaya.serve.run_page import DRAWING, page_file
from openzaya.serve.run_records import records_of

RECORDS = asyncio.run(records_of(journal(), whole=True))


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with launched() as browser, page_of(browser) as page:
        page.add_script_tag(content="\n".join(page_file(name) for name in DRAWING))
        yield page


def html(page: Any, text: str) -> str:
    """A text as the page draws it."""
    script = (
        "(text) => { const made = document.createElement('div'); made.append(markdown(text)); return made.innerHTML }"
    )
    return str(page.evaluate(script, text))


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("**bold** *slanted* `a < b`", "<p><strong>bold</strong> <em>slanted</em> <code>a &lt; b</code></p>"),
        ("a_b_c and 2 * 3 * 4", "<p>a_b_c and 2 * 3 * 4</p>"),
        ("It costs $5 and $6.", "<p>It costs $5 and $6.</p>"),
        ("- one\n- two\n  - inner\n- three", "<ul><li>one</li><li>two<ul><li>inner</li></ul></li><li>three</li></ul>"),
        ("3. three\n4. four", '<ol start="3"><li>three</li><li>four</li></ol>'),
        ("> said\n> twice", "<blockquote><p>said\ntwice</p></blockquote>"),
        ("# Title", "<h4>Title</h4>"),
        ("a | b\n--|--\n1 | 2", "<th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td>"),
        ("<b>&amp;</b>", "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
        ("[x](https://a.b/c)", 'href="https://a.b/c" target="_blank" rel="noopener noreferrer nofollow">x</a>'),
        ("```python\nif a < b:\n    **no**\n```\nafter", "if a &lt; b:\n    **no**</code></pre>"),
        ("```\nnot closed yet", "<code>not closed yet</code>"),
        ("\\*plain\\*", "<p>*plain*</p>"),
    ],
)
def test_markdown_is_drawn_as_models_mean_it(page: Any, text: str, drawn: str) -> None:
    assert drawn in html(page, text)


@pytest.mark.parametrize(
    ("source", "drawn"),
    [
        ("\\frac{1}{2}", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        ("x_1^2", "<msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup>"),
        ("\\sqrt[3]{8}", "<mroot><mn>8</mn><mn>3</mn></mroot>"),
        ("\\sum_{i=1}^n i", "<munderover><mo>∑</mo>"),
        ("\\left( a \\right.", '<mo fence="true" stretchy="true">(</mo><mi>a</mi>'),
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "<mtr><mtd><mn>3</mn></mtd><mtd><mn>4</mn></mtd></mtr>"),
        ("\\text{if } x \\le 3", "<mtext>if </mtext><mi>x</mi><mo>≤</mo><mn>3</mn>"),
        ("\\mathbb{R}", "<mi>ℝ</mi>"),
    ],
)
def test_formulas_are_drawn_as_mathematics(page: Any, source: str, drawn: str) -> None:
    assert drawn in html(page, f"So \\({source}\\).")
    assert drawn in html(page, f"\\[{source}\\]")


@pytest.mark.parametrize(
    "source", ["\\unknowncommand{x}", "\\frac{1}", "{" * 60, "a}b", "x^", "\\begin{tikz}a\\end{tikz}"]
)
def test_what_is_no_known_formula_is_shown_as_it_was_written(page: Any, source: str) -> None:
    assert '<code class="formula">' in html(page, f"\\({source}\\)")


def test_a_boxed_answer_is_drawn_with_its_inner_braces(page: Any) -> None:
    drawn = html(page, "The answer is \\boxed{\\frac{1}{2}}.")
    assert '<mrow class="boxed"><mfrac><mn>1</mn><mn>2</mn></mfrac></mrow>' in drawn
    assert drawn.endswith(".</span></p>")


def test_long_and_hostile_texts_are_drawn_at_once(page: Any) -> None:
    for text in ("*" * 7000, "`" * 7000, "[" * 7000, "$a" * 3000, "> " * 3000, "\\boxed{" * 1000, "| a " * 3000):
        assert html(page, text), text[:10]  # what grew without measure would run into the time limit


def folded(page: Any, records: list[dict[str, Any]], expression: str) -> Any:
    return page.evaluate(f"(records) => {{ const run = runFrom(records); return {expression} }}", records)


def test_a_run_is_what_its_records_say(page: Any) -> None:
    shape = "[run.rows.map((row) => row.map((place) => place.stage)), run.votes(run.rows[1]), run.answers, run.tokens]"
    assert folded(page, RECORDS, shape) == [[["answered"] * 2] * 2, [[0, 2]], ["4"], 28]
    assert folded(page, RECORDS, "run.parents(run.rows[1][1]).map((place) => place.index)") == [1]
    assert folded(page, RECORDS, "run.readers(run.rows[0][0]).map((place) => [place.round, place.index])") == [[1, 0]]
    assert folded(page, RECORDS, "[run.chosen.round, run.chosen.index]") == [1, 0]


def test_what_never_ran_is_said_not_to_have(page: Any) -> None:
    stages = "[run.closing.kind, run.rows[1].map((place) => place.stage), standing(run)]"
    assert folded(page, RECORDS[:4], stages) == [
        "unfinished",
        ["answered", "unused"],
        "This run had not ended; what follows is as far as it got.",
    ]


def test_doubts_are_said_beside_the_answer(page: Any) -> None:
    rollouts = [dict(record) for record in RECORDS[1:5]]
    rollouts[1] |= {"finish_reason": "failed", "failure": "it broke", "answer": None, "group": None}
    rollouts[3] |= {"answer": "5", "group": 1}
    end = {**RECORDS[-1], "group": 1, "answer": "5", "chosen": [1, 1]}
    assert folded(page, [RECORDS[0], *rollouts, end], "reasons(run)") == [
        "1 of 2 in the last round hold B; 0 of 2 held it in round 0.",
        "The vote of the last round says otherwise: A (4) has 1 of 2.",
        "The reply is that of candidate 2 of round 1.",
        "1 of 4 rollouts failed, such as: it broke",
    ]


def test_the_time_left_is_judged_by_those_that_ended(page: Any) -> None:
    script = """(records) => {
      const run = new Run();
      const [header, first] = records;
      run.take(header, 0);
      run.take({ kind: "now", writing: [[0, 0, 2], [0, 1, 0]], from: 0, text: "", reasoning_characters: 0 }, 1);
      const before = run.left();
      run.take(first, 2);
      run.take({ kind: "now", writing: [[0, 1, 3]], from: 0, text: "", reasoning_characters: 0 }, 4);
      return [before, run.left()];
    }"""
    before, left = page.evaluate(script, RECORDS)
    assert before is None
    assert left == pytest.approx((4 + 7 + 7) * 4 / 10)
