"""What a corpus of a training recipe is: where its documents lie and how each becomes tokens.

A recipe names its corpora once, as tables `[corpora.NAME]`; its phases mix them by weight:

    [corpora.web]
    format = "parquet"
    paths = ["data/web/*.parquet"]

    [corpora.chat]
    format = "jsonl"
    paths = ["data/chat.jsonl.gz"]
    messages = "messages"

    [[phases]]
    row = 4096                              # the context: tokens of a row
    corpora = { web = 0.7, chat = 0.3 }     # shares of the rows
    overlong = "trim"                       # of conversations longer than a row

Such a phase reads `openzaya.data.shard_batches.ShardBatches`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from openzaya.data.conversations import Learned
from openzaya.data.mixture import FamilyShare, check_mixture
from openzaya.mrsa.prompts import Task

Format = Literal["jsonl", "parquet", "arrow", "text", "datasets", "problems"]


class CorpusRecipe(BaseModel):
    """One table `[corpora.NAME]`: documents of one form from one kind of source.

    A row of `jsonl`, `parquet`, `arrow` or `datasets` is a document in one of three forms: plain text in the field
    `text` (the default), a conversation in the field `messages`, or one of a single turn in the fields `question`,
    `answer` and, where there is one, `reasoning`. Conversations are written by the chat template and only replies are
    learned; of plain text every token is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Format
    """`arrow` is an IPC file or stream; `datasets` streams by Hugging Face's library; `problems` are generated."""
    paths: tuple[str, ...] = ()
    """Files or patterns (`**` for folders), read in the order given and by name within a pattern. Of text and JSON
    lines also `.gz`, `.bz2`, `.xz` and `.zst`. `{stdlib}` is the folder of Python's own standard library, program text
    that is on every machine."""
    dataset: str | None = None
    """Of `datasets`: the name on the hub, or a folder."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """Of `datasets`: a commit, without which the data may change under the same name."""

    text: str | None = None
    messages: str | None = None
    """A field with a list of `{role, content}`, `reasoning_content` where there is reasoning outside of the content; or
    of `{from, value}`, as ShareGPT writes it."""
    question: str | None = None
    answer: str | None = None
    reasoning: str | None = None
    tools: str | None = None
    """A field with the tools that a conversation may call, as a list or as JSON text."""
    tails: str | None = None
    """A field with a list of tails: the last question is wrapped around them as Markovian RSA does (an aggregation
    example). Without this key the same rows are plain conversations, which is the control of aggregation."""
    task: Task | Literal["field", "auto"] = "auto"
    """Which wording wraps tails: one for all, the row's own field `task`, or by what the question looks like."""
    learned: Learned = "last"
    """Replies after the last user message, or every reply."""
    earlier_reasoning: bool = False
    """Keep the reasoning of replies before the last user message, which the template leaves out. Trimming removes it
    where a conversation does not fit otherwise."""
    separator: str | None = None
    """Of `text`: what stands between documents; by default a file is one document."""

    families: dict[str, FamilyShare] = Field(default_factory=dict)
    """Of `problems`: the families, how often and how hard, each problem with its worked solution."""
    seed: int = 0
    """Of `problems`."""

    documents: Annotated[int, Field(gt=0)] | None = None
    """Most documents that are read, from the first one on; `problems` need it."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the documents, by a hash of what they say, that is never trained on and gives the held-out loss.
    Conversations that begin with the same question are on one side."""

    @model_validator(mode="after")
    def _consistent(self) -> CorpusRecipe:
        self._check_source()
        self._check_form()
        return self

    @property
    def text_field(self) -> str | None:
        """The field of plain text; None for conversations."""
        return None if self.conversations else self.text or "text"

    @property
    def conversations(self) -> bool:
        """Whether documents are conversations."""
        return self.format == "problems" or self.messages is not None or self.question is not None

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what the tokens of the corpus are, besides what lies in its files."""
        fields = self.model_dump(mode="json", exclude={"paths"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def _check_source(self) -> None:
        if self.format == "problems":
            if self.documents is None:
                raise ValueError("problems never end; say how many with documents")
            check_mixture(self.families)
        elif self.families:
            raise ValueError(f"families belong to the format problems, and this one is {self.format}; remove them")
        if self.format == "datasets" and not self.dataset:
            raise ValueError("the format datasets needs the name of a dataset; give dataset")
        if self.format != "datasets" and (self.dataset or self.subset or self.revision):
            raise ValueError(f"dataset, subset and revision belong to the format datasets; this one is {self.format}")
        if (self.format in ("jsonl", "parquet", "arrow", "text")) != bool(self.paths):
            need = "has no files; give paths" if not self.paths else "reads no files; remove paths"
            raise ValueError(f"the format {self.format} {need}")

    def _check_form(self) -> None:
        forms = [name for name in ("text", "messages", "question") if getattr(self, name) is not None]
        if len(forms) > 1:
            raise ValueError(f"a document has one form, and {' and '.join(forms)} are given; keep one of them")
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer go together; give the fields of both")
        if self.reasoning is not None and self.question is None:
            raise ValueError("reasoning is a field beside question and answer; in messages it is reasoning_content")
        if self.format in ("text", "problems") and (forms or self.tails or self.tools):
            raise ValueError(f"the format {self.format} has no fields; remove {(forms or ['tails and tools'])[0]}")
        if (self.tails or self.tools) and not self.conversations:
            raise ValueError("tails and tools belong to conversations; give messages, or question and answer")
        if (self.learned != "last" or self.earlier_reasoning) and not self.conversations:
            raise ValueError("learned and earlier_reasoning belong to conversations; give messages")
        if self.separator is not None and (self.format != "text" or not self.separator):
            raise ValueError(f"separator {self.separator!r} must be a text, and belongs to the format text")


def check_weights(weights: Mapping[str, float], corpora: Mapping[str, CorpusRecipe]) -> None:
    """Raises ValueError where a phase's mixture is empty, names a corpus that does not exist or weighs one at nothing.

    Weights need not sum to one: shares are weights over their sum.
    """
    if not weights:
        raise ValueError("the phase mixes no corpora; give at least one, as in corpora = { web = 1.0 }")
    for name, weight in weights.items():
        if name not in corpora:
            raise ValueError(f"the corpus {name!r} does not exist; there are {', '.join(corpora) or 'none'}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight {weight} of {name} is not a share; give a number above 0, or leave it out")
