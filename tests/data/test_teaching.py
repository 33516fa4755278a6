from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openzaya.backends.protocol import BackendError, Capabilities, ChatParams, Delta, Message, Usage
from openzaya.chat import encode_chat
from openzaya.data.corpora import CorpusRecipe
from openzaya.data.rollouts import Speaker
from openzaya.data.teaching import TeachingProgress, questions_of, write_aggregation_examples
from openzaya.data.teaching_log import TeachingLog
from openzaya.data.tokenising import write_shards
from openzaya.mrsa import MrsaConfig, MrsaError
from openzaya.mrsa.prompts import aggregation_messages

CONFIG = MrsaConfig(candidates=4, tails=2, rounds=1, beta=100, tau=10, final_tokens=100, final_n=3)


@dataclass
class Teacher:
    """Adds two numbers, one token a character; wrong where the seed is a multiple of `wrong`."""

    name: str = "teacher"
    wrong: int = 0
    fails: frozenset[str] = frozenset()
    calls: list[tuple[str, ChatParams]] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    stops: int = 1 << 30
    """Calls after which it is cancelled, as by a kill."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(token_ids=True, tokenize=True, model=self.name)

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]:
        asked = str(messages[-1]["content"])
        self.calls.append((asked, params))
        if len(self.calls) > self.stops:
            raise KeyboardInterrupt
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(0)
            question = re.search(r"(\d+) \+ (\d+)", asked)
            assert question is not None
            if question[0] in self.fails:
                raise BackendError("gone")
            seed = params.seed or 0
            slipped = bool(self.wrong) and seed % self.wrong == 0
            total = int(question[1]) + int(question[2]) + slipped
            reasoning = f"{self.name} {seed % 1000:03}: {question[0]} = {total}"
            answer = f"\\boxed{{{total}}}"
            yield Delta(reasoning=reasoning, reasoning_ids=tuple(reasoning.encode()))
            yield Delta(content=answer, content_ids=tuple(answer.encode()))
            yield Delta(finish_reason="stop", usage=Usage(completion_tokens=len(reasoning) + len(answer)))
        finally:
            self.in_flight -= 1

    def complete(self, prompt: Any, params: Any) -> AsyncIterator[Delta]:
        raise NotImplementedError

    async def count(self, text: str) -> int:
        return len(text.encode())

    async def encode(self, text: str) -> list[int]:
        return list(text.encode())

    async def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    async def swap_weights(self, source: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        return None


@pytest.fixture
def recipe(tmp_path: Path) -> CorpusRecipe:
    rows = [{"q": f"What is {number} + 7?", "a": f"It is \\boxed{{{number + 7}}}."} for number in range(12)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CorpusRecipe(format="jsonl", paths=[str(tmp_path / "q.jsonl")], question="q", answer="a")


def write(recipe: CorpusRecipe, teacher: Teacher, out: Path, **options: Any) -> list[dict[str, Any]]:
    count = asyncio.run(write_aggregation_examples(recipe, teacher, CONFIG, out, **options))  # type: ignore[arg-type]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == count
    return rows


def test_an_example_is_the_question_the_tails_that_the_teacher_read_and_its_reply(
    recipe: CorpusRecipe, tmp_path: Path
) -> None:
    teacher = Teacher()
    rows = write(recipe, teacher, tmp_path / "out.jsonl")
    assert len(rows) == 12 * 3
    asked = [prompt for prompt, _params in teacher.calls]
    for row in rows:
        question, reply = row["messages"]
        assert len(row["tails"]) == 2
        assert all(len(tail) == 10 and reply["reasoning_content"].endswith(tail[-4:]) for tail in row["tails"])
        (wrapped,) = aggregation_messages([question], row["tails"], row["task"])
        assert wrapped["content"] in asked
        assert (row["right"], row["exactness"], row["round"]) == (True, "ids", 1)
    assert not (tmp_path / "out.jsonl.log").exists()


def test_a_corpus_reads_the_examples_as_markovian_rsa_would_put_them(
    recipe: CorpusRecipe, speaker: Speaker, tmp_path: Path
) -> None:
    rows = write(recipe, Teacher(), tmp_path / "out.jsonl")
    examples = CorpusRecipe(
        format="jsonl",
        paths=[str(tmp_path / "out.jsonl")],
        messages="messages",
        tails="tails",
        task="field",
        held_out=0,
    )
    (shard,) = write_shards("aggregation", examples, speaker, tmp_path / "s").split("train")
    prompt = encode_chat(
        speaker.tokenizer,
        speaker.template,
        aggregation_messages(rows[0]["messages"][:1], rows[0]["tails"], rows[0]["task"], speaker.prompts),
    )
    assert shard.ids(0)[: len(prompt)].tolist() == prompt
    assert shard.learned(0).tolist().index(True) == len(prompt)


def test_the_tails_of_a_student_are_read_by_the_teacher(recipe: CorpusRecipe, tmp_path: Path) -> None:
    teacher, student = Teacher(), Teacher("student")
    config = CONFIG.model_copy(update={"tau": 100})
    asyncio.run(write_aggregation_examples(recipe, teacher, config, tmp_path / "out.jsonl", student=student))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (len(student.calls), len(teacher.calls)) == (12 * 4, 12 * 3)
    assert all(tail.startswith("student") for row in rows for tail in row["tails"])
    assert all(row["messages"][-1]["reasoning_content"].startswith("teacher") for row in rows)


def test_only_right_replies_are_kept_where_that_is_asked_for(recipe: CorpusRecipe, tmp_path: Path) -> None:
    everything = write(recipe, Teacher(wrong=2), tmp_path / "all.jsonl")
    told: list[TeachingProgress] = []
    right = write(recipe, Teacher(wrong=2), tmp_path / "right.jsonl", keep="right", on_progress=told.append)
    assert [row for row in everything if row["right"]] == right
    assert 0 < len(right) < len(everything)


def test_replies_that_were_cut_are_left_out(recipe: CorpusRecipe, tmp_path: Path) -> None:
    class Cut(Teacher):
        async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]:
            async for delta in super().chat(messages, params):
                yield Delta(finish_reason="length", usage=delta.usage) if delta.finish_reason else delta

    assert write(recipe, Cut(), tmp_path / "out.jsonl") == []


def test_no_more_rollouts_are_in_flight_than_asked(recipe: CorpusRecipe, tmp_path: Path) -> None:
    teacher = Teacher()
    write(recipe, teacher, tmp_path / "out.jsonl", concurrency=5)
    assert teacher.most == 5


def test_a_run_that_was_stopped_goes_on_to_the_same_examples_and_repeats_no_question(
    recipe: CorpusRecipe, tmp_path: Path
) -> None:
    expected = write(recipe, Teacher(), tmp_path / "whole.jsonl", concurrency=4)
    out, log = tmp_path / "out.jsonl", tmp_path / "out.jsonl.log"
    stopped = Teacher(stops=40)
    with pytest.raises(KeyboardInterrupt):
        write(recipe, stopped, out, concurrency=4)
    kept = len(log.read_text().splitlines()) - 1
    assert 0 < kept < 12
    assert not out.exists()
    with log.open("a") as file:
        file.write('{"id": "0:9", "exam')
    later = Teacher()
    assert write(recipe, later, out, concurrency=4) == expected
    assert len(later.calls) == 7 * (12 - kept)


def test_a_torn_line_is_cut_off_before_the_next_is_written(tmp_path: Path) -> None:
    path, result = tmp_path / "log", {"examples": [{"n": 1}], "left_out": {"cut": 2}}
    with TeachingLog.open(path, "d") as log:
        log.add("0:10", result)
    with path.open("a") as file:
        file.write('{"id": "0:9", "exam')
    with TeachingLog.open(path, "d") as log:
        assert log.found == {"0:10": result}
        log.add("0:9", {"examples": [{"n": 0}], "left_out": {}})
    with TeachingLog.open(path, "d") as log:
        assert list(log.examples()) == [{"n": 0}, {"n": 1}]
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="is no log of aggregation examples"), TeachingLog.open(path, "d"):
        pass


def test_questions_that_failed_are_told_and_tried_again(recipe: CorpusRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(MrsaError, match=r"1 questions failed, and the same call tries them again; .*gone"):
        write(recipe, Teacher(fails=frozenset({"3 + 7"})), out)
    assert not out.exists()
    again = Teacher()
    assert len(write(recipe, again, out)) == 36
    assert len(again.calls) == 7
    everything = frozenset(f"{number} + 7" for number in range(12))
    with pytest.raises(MrsaError, match="gone"):
        write(recipe, Teacher(fails=everything), tmp_path / "none.jsonl")


def test_what_does_not_belong_together_is_refused(recipe: CorpusRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(MrsaError):
        write(recipe, Teacher(fails=frozenset({"3 + 7"})), out)
    with pytest.raises(ValueError, match="begun with another corpus, model or settings"):
        write(recipe, Teacher("other"), out)
    write(recipe, Teacher(), out)
    with pytest.raises(ValueError, match="is there already"):
        write(recipe, Teacher(), out)
    flat = CONFIG.model_copy(update={"rounds": 0})
    with pytest.raises(ValueError, match="nothing is aggregated"):
        asyncio.run(write_aggregation_examples(recipe, Teacher(), flat, tmp_path / "x.jsonl"))
    texts = CorpusRecipe(format="jsonl", paths=recipe.paths, text="q")
    with pytest.raises(ValueError, match="plain texts ask no question"):
        write(texts, Teacher(), tmp_path / "y.jsonl")


def test_problems_can_be_asked_and_bring_their_answers() -> None:
    recipe = CorpusRecipe(format="problems", documents=5, families={"sums_list": {"difficulty": [1, 2]}})
    found = list(questions_of(recipe))
    assert len(found) == 5
    assert all(question.answer and question.messages[-1]["role"] == "user" for question in found)
    assert found[-1].share == 1.0
