"""inspect_ai as a client of a small local task."""

from __future__ import annotations

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

os.environ["MRSA_BASE_URL"], os.environ["MRSA_API_KEY"] = os.environ["BASE_URL"], "none"
task = Task(
    dataset=[Sample(input=f"{n} + {42 - n}?", target="42") for n in range(4)], solver=generate(), scorer=includes()
)
(log,) = eval(task, model="openai-api/mrsa/zaya", display="plain", log_dir=os.environ["UPSTREAM_LOG"] + ".inspect")
assert log.status == "success", log.error
accuracy = log.results.scores[0].metrics["accuracy"].value
assert accuracy == 1.0, accuracy
assert next(iter(log.stats.model_usage.values())).output_tokens > 0
print("inspect_ai: passed")
