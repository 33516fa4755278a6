"""The tokenizer and the template of a run: those of a folder, or a tokenizer trained on what the recipe reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from openzaya.chat import ChatTemplate, Tokenizer, render_reply, train_tokenizer
from openzaya.data.mixture import draw_problem
from openzaya.data.rollouts import Speaker
from openzaya.data.sources import open_source
from openzaya.locks import alone
from openzaya.model.checkpoint import find_model
from openzaya.model.sources import companions
from openzaya.mrsa.prompts import bundled_prompts
from openzaya.train.config import TrainConfig
from openzaya.train.refresh import POOL_INDICES


def speaker_of(config: TrainConfig, folder: Path, say: Callable[[str], None]) -> Speaker:
    """How the run in `folder` speaks; its `tokenizer/` goes along with every checkpoint.

    Raises ValueError where the recipe names a folder that has no tokenizer.
    """
    kept, source = folder / "tokenizer", _source(config)
    with alone(folder):
        if not kept.is_dir():
            partial = kept.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            if source is None:
                recipe = config.tokenizer
                read = [f"{recipe.documents:,} problems"] if config.mixture else []
                read += [f"{count:,} documents of {name}" for name, count in recipe.corpora.items()]
                say(f"tokenizer: training on {', '.join(read)}")
                train_tokenizer(_texts(config), recipe.vocab_size, partial)
            else:
                Tokenizer.from_folder(source)
                partial.mkdir()
                for path in companions(source):
                    shutil.copyfile(path, partial / path.name)
            partial.replace(kept)
    # A model's own folder may name the end of a reply in its config.json alone.
    own = source or kept
    return Speaker(Tokenizer.from_folder(own), ChatTemplate.from_folder(own), bundled_prompts())


def _source(config: TrainConfig) -> Path | None:
    if config.tokenizer.folder is not None:
        return Path(config.tokenizer.folder)
    return None if config.model.checkpoint is None else find_model(config.model.checkpoint)


def _texts(config: TrainConfig) -> Iterator[str]:
    if config.mixture:
        yield from _problems(config)
    for name, documents in config.tokenizer.corpora.items():
        recipe = config.corpora[name]
        if recipe.text_field is None:
            raise ValueError(f"tokenizer.corpora names {name!r}, which holds conversations; name corpora of texts")
        for _position, row in islice(open_source(recipe).rows(), documents):
            yield str(row.get(recipe.text_field, ""))


def _problems(config: TrainConfig) -> Iterator[str]:
    template, prompts = ChatTemplate.built_in(), bundled_prompts()
    for index in range(config.tokenizer.documents):
        problem = draw_problem(config.mixture, config.seed, POOL_INDICES // 2 + index)
        question = template.render([{"role": "user", "content": problem.question}])
        yield question + render_reply(problem.worked.reasoning, problem.reply())
        # Aggregation reads its wording in every prompt.
        if index % 4 == 0:
            yield prompts.fixed_text("math", 4)
