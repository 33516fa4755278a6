"""lm-eval as a client: a small local task by chat and by completions, and what reached the upstream."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import lm_eval
from lm_eval.tasks import TaskManager

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], do_sample: false, temperature: 0.0, max_gen_toks: 64}}
filter_list:
  - name: number
    filter: [{{function: regex, regex_pattern: "(-?[0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match}}]
"""

base = os.environ["BASE_URL"]
log = Path(os.environ["UPSTREAM_LOG"])
with TemporaryDirectory() as folder:
    data = Path(folder) / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n} + {42 - n}?", "answer": "42"}) + "\n" for n in range(4)))
    (Path(folder) / "sums.yaml").write_text(TASK.format(data=data))
    manager = TaskManager(include_path=folder, include_defaults=False)
    for kind, path in (("local-chat-completions", "chat/completions"), ("local-completions", "completions")):
        before = len(log.read_text().splitlines())
        chat = "chat" in kind
        arguments = (
            f"model=zaya,base_url={base}/{path},num_concurrent=4,tokenized_requests=False,tokenizer_backend=None"
        )
        found = lm_eval.simple_evaluate(
            model=kind, model_args=arguments, tasks=["sums"], task_manager=manager, apply_chat_template=chat
        )
        scores = {name: score for name, score in found["results"]["sums"].items() if name.startswith("exact_match,")}
        assert list(scores.values()) == [1.0], scores
        asked = [json.loads(line) for line in log.read_text().splitlines()[before:]]
        if chat:
            rollouts = [body for body in asked if body["temperature"] == 1.0]
            finals = [body for body in asked if body["temperature"] == 0.0]
            assert len(rollouts) == 4 * 6
            assert len(finals) == 4
            assert len({body["seed"] for body in rollouts}) == 6  # lm-eval sends one seed for all questions
            assert all("stop" not in body for body in rollouts)
            assert all(body["stop"] == ["Question:"] for body in finals)
        print(f"lm-eval: {kind} passed", flush=True)
