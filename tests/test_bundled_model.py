from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import openzaya
from openzaya.chat import ChatTemplate, Tokenizer, encode_chat
from openzaya.engine.engine import Engine
from openzaya.grading import extract_answer
from openzaya.model.checkpoint import find_model, load_model
from openzaya.problems import generate, verify

FOLDER = find_model("tiny")
QUESTIONS = (
    "Compute 17 + 25 - 9.",
    "Solve 3x + 2 = 20 for x.",
    generate("sums_list", 5, 3, split="held_out").question,
    generate("sorting", 8, 3, split="held_out").question,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(FOLDER)


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    return encode_chat(tokenizer, ChatTemplate.from_folder(FOLDER), [{"role": "user", "content": question}])


def test_the_bundled_folder_is_small_and_has_all_that_a_model_needs() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "evaluation.json"} <= files
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= files
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16 * 2**20


def test_the_bundled_model_has_every_mechanism_of_a_zaya() -> None:
    config = load_model("tiny").config
    assert config.num_experts == 8
    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert config.cca_time0 == config.cca_time1 == 2
    model = load_model("tiny", dtype="float32")
    assert model.model.layers[1].mlp.gate.router_states_scale is not None
    biases = torch.stack([layer.mlp.gate.balancing_biases for layer in model.model.layers])
    assert (biases[:, -1] == -1).all()
    assert biases[:, :-1].abs().max() > 0  # balanced while it was trained


def test_transformers_loads_the_bundled_folder_and_says_the_same_greedy_tokens(tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    with Engine("tiny", dtype="float32") as engine:
        for question in QUESTIONS:
            ids = prompt(tokenizer, question)
            rendered = their_tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            assert list(rendered) == ids
            generated = theirs.generate(
                torch.tensor([ids]), max_new_tokens=200, do_sample=False, eos_token_id=sorted(tokenizer.eos_ids)
            )[0, len(ids) :].tolist()
            ours = list(engine.generate([ids], max_tokens=200, temperature=0.0)[0][0].token_ids)
            length = min(len(ours), len(generated))
            assert length > 10
            assert generated[:length] == ours[:length]
            assert set(generated[length:]) <= set(tokenizer.eos_ids)


def test_the_bundled_model_solves_easy_problems_that_it_never_saw() -> None:
    problems = [
        generate(family, seed, 2, split="held_out")
        for family in ("arithmetic_chain", "remainders_list", "sequence", "modular_chain")
        for seed in range(10)
    ]
    tokenizer = Tokenizer.from_folder(FOLDER)
    with Engine("tiny") as engine:
        replies = engine.generate(
            [prompt(tokenizer, problem.question) for problem in problems], max_tokens=300, temperature=0.0
        )
    right = 0
    for problem, (reply,) in zip(problems, replies):
        answer = extract_answer(reply.text, "math")
        right += answer is not None and verify(problem, answer)
    assert right >= 0.6 * len(problems)


def test_solve_answers_under_markovian_rsa_with_the_bundled_model() -> None:
    solution = openzaya.solve("Compute 17 + 25 - 9.", model="tiny", seed=0)
    assert solution.answer == "33"
    assert solution.finish_reason == "answered"
    assert solution.exactness == "ids"
    assert [summary.candidates for summary in solution.rounds] == [16, 16, 16]


def test_the_card_quotes_the_evaluation_that_is_shipped_with_it() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    report = json.loads((Path(FOLDER) / "evaluation.json").read_text(encoding="utf-8"))
    from openzaya.evals import Report, markdown

    assert markdown(Report.model_validate(report)) in card
