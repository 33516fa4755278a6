"""The playground in a browser, over a real service with a scripted upstream."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import launched, page_of, sync_api
from service_under_test import is_final
from test_process import serving

from fake_openai import FakeServer, Reply, Request

CONFIG = """
name = "zaya"
[mrsa]
preset = "default"
candidates = 4
tails = 2
rounds = 1
beta = 200
tau = 6
final_tokens = 300
"""
HOSTILE = (
    '<img src=x onerror="window.broken=1"><script>window.broken=1</script> [a](javascript:window.broken=1) **bold**'
)


def answering(request: Request) -> Reply:
    """Three of four find 42; the final call explains it."""
    if is_final(request):
        return Reply(reasoning="they agree", content="So:\n\n- six sevens\n\nThe answer is \\boxed{42}.")
    answer = "41" if request.index % 4 == 3 else "42"
    thought = f"a long thought about it that comes to {answer}"
    # The first answer to appear is A.
    return Reply(reasoning=thought, content=f"\\boxed{{{answer}}}", first_delay=0.15 if answer == "41" else 0.0)


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeServer]:
    with FakeServer(answering, context=32768) as server:
        yield server


@pytest.fixture(scope="module")
def service(upstream: FakeServer, tmp_path_factory: Any) -> Iterator[str]:
    config: Path = tmp_path_factory.mktemp("serve") / "serve.toml"
    config.write_text(CONFIG)
    with serving("--backend", upstream.url, "--config", str(config)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, service: str, upstream: FakeServer) -> Iterator[Any]:
    upstream.script = answering
    upstream.requests.clear()
    with page_of(browser) as page:
        page.goto(service)
        page.wait_for_selector(".example")
        yield page


def ask(page: Any, question: str = "What is 6 times 7?") -> None:
    """Ask by keyboard alone: the field has the focus from the start."""
    page.keyboard.type(question)
    page.keyboard.press("Enter")


def ended(page: Any, turn: int = 0) -> Any:
    """The account of a turn, once its run has ended."""
    account = page.locator(".account.over").nth(turn)
    account.wait_for()
    return account


def cell(page: Any, round: int, index: int) -> Any:
    return page.locator(".band").nth(round).locator(".cell").nth(index)


def test_a_question_is_asked_and_answered_and_its_run_reopened(page: Any, service: str) -> None:
    ask(page)
    for _ in range(2):  # as it comes, and from the link
        account = ended(page)
        assert page.locator("h2.question").inner_text() == "What is 6 times 7?"
        assert account.locator(".verdict").inner_text().split() == ["Answer", "A", "42"]
        assert account.locator(".reply li").inner_text() == "six sevens"
        assert [page.locator(".band").nth(row).locator(".cell").count() for row in range(3)] == [4, 4, 1]
        assert page.locator(".band").nth(1).locator(".tally").inner_text().split() == ["A", "42", "×3", "B", "41", "×1"]
        assert "3 of 4 in the last round hold A; 3 of 4 held it in round 0." in account.locator(".reasons").inner_text()
        assert "The answer is 42." in account.locator("[role=status]").inner_text()
        assert re.fullmatch(re.escape(service) + r"/#run_[0-9a-f]{32}", page.url)
        page.reload()


def test_a_candidate_shows_its_tail_its_lineage_and_its_whole_reasoning(page: Any) -> None:
    ask(page)
    ended(page)
    cell(page, 1, 0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    reading = page.locator(".reading")
    assert reading.locator("h3").inner_text() == "Candidate 2 of round 1"
    assert reading.locator(".family").first.locator("button").count() == 2
    tail = reading.locator("mark").inner_text()
    assert "a long thought about it that comes to 42".endswith(tail)
    reading.get_by_text(re.compile("^Show the")).click()
    sync_api.expect(page.locator(".thought")).to_have_text(re.compile("^a long thought about it"))
    assert page.locator(".lines path.direct").count() == 2
    reading.locator(".family").first.locator("button").first.click()
    assert "of round 0" in reading.locator("h3").inner_text()
    cell(page, 0, 0).focus()
    page.keyboard.press("Escape")
    assert "Choose a candidate" in reading.inner_text()


def test_the_picture_grows_and_stop_ends_every_rollout(page: Any, upstream: FakeServer) -> None:
    def script(request: Request) -> Reply:
        return answering(request) if request.index == 0 else Reply(content="on and on", stall_after=2)

    upstream.script = script
    ask(page)
    page.wait_for_selector(".cell.answered")
    sync_api.expect(page.locator(".cells .cell.writing")).to_have_count(3)
    assert page.locator(".standing").inner_text() == "Round 0 of 1: 1 of 4 done, A (42) leads with 1 vote."
    assert page.locator(".verdict").inner_text().split() == ["Leading", "so", "far", "A", "42"]
    page.get_by_role("button", name="Stop").click()
    account = ended(page)
    assert account.locator(".standing").inner_text() == "Stopped. 1 candidate had ended and are kept."
    upstream.wait_until(lambda server: len(server.aborts) == 3)
    assert page.get_by_role("button", name="Ask").is_visible()


def test_a_conversation_goes_on_from_what_was_said(page: Any, upstream: FakeServer) -> None:
    ask(page)
    ended(page)
    upstream.requests.clear()
    ask(page, "And doubled?")
    ended(page, 1)
    said = [message["content"] for message in upstream.requests[0].messages]
    assert said == ["What is 6 times 7?", "So:\n\n- six sevens\n\nThe answer is \\boxed{42}.", "And doubled?"]
    page.reload()
    ended(page)
    assert page.locator(".earlier.user").inner_text() == "What is 6 times 7?"
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0


def test_settings_and_presets_reach_the_run(page: Any, upstream: FakeServer) -> None:
    page.get_by_text("Settings").click()
    page.locator("#setting-candidates").fill("2")
    page.locator("#setting-rounds").fill("0")
    page.locator("#question").focus()
    ask(page)
    ended(page)
    assert [page.locator(".band").nth(row).locator(".cell").count() for row in range(2)] == [2, 1]
    page.get_by_role("button", name="New conversation").click()
    page.locator("#setting-candidates").fill("")
    page.locator("#setting-rounds").fill("")
    page.select_option("#models", "zaya@single")
    page.locator("#question").focus()
    ask(page)
    ended(page)
    assert page.locator(".cells .cell").count() == 1


def test_what_a_model_writes_is_never_markup(page: Any, upstream: FakeServer) -> None:
    upstream.script = Reply(reasoning=HOSTILE, content=HOSTILE + " \\boxed{<b>1</b>}")
    ask(page, HOSTILE)
    ended(page)
    cell(page, 0, 0).click()
    page.wait_for_selector(".thought")
    assert page.evaluate("window.broken") is None
    assert page.locator("main img, main script, main b, main a").count() == 0
    assert page.locator(".reply").inner_text().startswith("<img src=x onerror=")
    assert page.locator(".reply strong").inner_text() == "bold"


def test_a_run_is_saved_as_a_page_that_opens_alone(page: Any, browser: Any, tmp_path: Path) -> None:
    ask(page)
    ended(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a page").click()
    saved = tmp_path / "run.html"
    download.value.save_as(saved)
    with page_of(browser, offline=True) as alone:
        alone.goto(saved.as_uri())
        assert ended(alone).locator(".reply li").inner_text() == "six sevens"
        cell(alone, 1, 1).click()
        alone.get_by_text(re.compile("^Show the")).click()
        sync_api.expect(alone.locator(".thought")).to_have_text(re.compile("^a long thought about it"))


def test_a_lost_connection_is_taken_up_again(page: Any) -> None:
    lost: list[str] = []

    def lose(route: Any) -> None:
        lost.append(route.request.url)
        route.abort() if len(lost) < 3 else route.continue_()

    page.route("**/events*", lose)
    ask(page)
    page.wait_for_selector(".connection:not([hidden])")
    assert ended(page).locator(".verdict").inner_text().split() == ["Answer", "A", "42"]
    assert page.locator(".connection").is_hidden()


@pytest.mark.slow
def test_a_page_goes_on_with_its_run_when_the_service_was_killed_and_is_back(
    browser: Any, upstream: FakeServer, tmp_path: Path
) -> None:
    def script(request: Request) -> Reply:
        held = holding and request.index > 4
        return Reply(content="on and on", stall_after=2) if held else answering(request)

    holding, upstream.script = True, script
    upstream.requests.clear()
    config = tmp_path / "serve.toml"
    config.write_text(f'store = "{tmp_path / "jobs.sqlite"}"\n{CONFIG}')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    arguments = ("--backend", upstream.url, "--config", str(config), "--port", port)
    with page_of(browser) as page:
        with serving(*arguments) as (url, process):
            page.goto(url)
            page.wait_for_selector(".example")
            ask(page)
            sync_api.expect(page.locator(".band").nth(1).locator(".cell.answered")).to_have_count(1)
            upstream.wait_until(lambda server: len(server.requests) == 8)
            process.kill()
            process.wait()
            page.wait_for_selector(".connection:not([hidden])")
        before, holding = len(upstream.requests), False
        with serving(*arguments):
            assert ended(page).locator(".verdict").inner_text().split() == ["Answer", "A", "42"]
            assert page.locator(".connection").is_hidden()
    assert len(upstream.requests) - before == 3 + 1


@pytest.mark.parametrize(
    ("status", "said"),
    [(429, "The service is busy: as many as it takes."), (None, "The service cannot be reached. Is it still running?")],
)
def test_trouble_is_said_in_a_sentence_and_the_question_kept(page: Any, status: int | None, said: str) -> None:
    error = json.dumps({"error": {"message": "as many as it takes"}})
    page.route("**/runs", lambda route: route.abort() if status is None else route.fulfill(status=status, body=error))
    ask(page)
    page.locator("#trouble:not([hidden])").wait_for()
    assert page.locator("#trouble").inner_text() == said
    assert page.locator("#question").input_value() == "What is 6 times 7?"
    page.unroute("**/runs")
    page.keyboard.press("Enter")
    ended(page)
    assert page.locator("#trouble").is_hidden()


def test_a_run_that_is_gone_is_said_to_be(page: Any, service: str) -> None:
    page.goto(f"{service}/#run_000000000000000000000000")
    page.locator("#trouble:not([hidden])").wait_for()
    assert "or not any more" in page.locator("#trouble").inner_text()


@pytest.mark.slow
def test_the_key_is_asked_for_and_kept_in_the_tab_alone(browser: Any, upstream: FakeServer, tmp_path: Path) -> None:
    upstream.script = answering
    config = tmp_path / "serve.toml"
    config.write_text(CONFIG)
    environment = {"OPENZAYA_API_KEY": "open sesame"}
    with (
        serving("--backend", upstream.url, "--config", str(config), **environment) as (url, _),
        page_of(browser) as page,
    ):
        page.goto(url)
        page.locator("dialog[open]").wait_for()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That key is not known to the service.").wait_for()
        page.keyboard.type("open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector(".example")
        ask(page)
        ended(page)
        assert page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])") == json.dumps(
            [{"openzaya.key": "open sesame"}, {}, ""], separators=(",", ":")
        )
        page.reload()
        ended(page)


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_it_fits_every_screen_and_its_letters_can_be_read(
    browser: Any, service: str, upstream: FakeServer, width: int, scheme: str
) -> None:
    upstream.script = answering
    with page_of(browser, viewport={"width": width, "height": 740}, color_scheme=scheme) as page:
        page.goto(service)
        page.wait_for_selector(".example")
        ask(page)
        ended(page)
        cell(page, 1, 1).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(CONTRASTS) == []


@pytest.mark.slow
def test_the_bundled_model_answers_in_the_playground(browser: Any) -> None:
    with serving() as (url, _), page_of(browser) as page:
        page.goto(url)
        page.wait_for_selector(".example")
        assert page.locator("#model").inner_text() == "zaya1-tiny"
        page.locator(".example").nth(1).click()
        page.keyboard.press("Enter")
        page.set_default_timeout(240_000)
        account = ended(page)
        assert account.locator(".standing").inner_text() == "Answered."
        assert account.locator(".verdict").inner_text().split()[0] == "Answer"
        assert page.locator(".cells .cell[class*=answer-]").count() > 24
        assert "16" in account.locator(".reasons").inner_text()


CONTRASTS = """() => {
  const colours = (element) => {
    const style = getComputedStyle(element);
    return [style.color, style.backgroundColor].map((text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const group of [0, 1, 2, 3, 4, 5, 6, 7, 8]) {
    const made = document.createElement("span");
    made.className = `letter ${colour(group)}`;
    document.body.append(made);
    const [a, b] = colours(made).map(light).sort((x, y) => y - x);
    made.remove();
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([group, (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
