"""lm-eval as a client that asks how likely answers are: of the bundled model, by completions with echo and logprobs."""

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
output_type: multiple_choice
doc_to_text: "Compute {{{{question}}}}. The answer is"
doc_to_choice: [" 42", " unlikely words that nobody would write here"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""

base = os.environ["BASE_URL"]
with TemporaryDirectory() as folder:
    data = Path(folder) / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n} + {42 - n}"}) + "\n" for n in range(4)))
    (Path(folder) / "sums.yaml").write_text(TASK.format(data=data))
    arguments = (
        f"model=zaya1-tiny,base_url={base}/completions,num_concurrent=4,tokenized_requests=True,tokenizer_backend=huggingface,"
        f"tokenizer={os.environ['TOKENIZER']}"
    )
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=["sums"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
    )
scores = [score for name, score in found["results"]["sums"].items() if name == "acc,none"]
assert scores == [1.0], found["results"]
print("lm-eval: log-likelihoods passed")
