"""Markovian RSA: rounds of candidates that read only the tails of the round before.

`run` solves one problem over any `Backend`; `replay` retells a finished run from its journal.
"""

from openzaya.mrsa.config import ConfigError, MrsaConfig, automatic_preset, make_config, preset, preset_names
from openzaya.mrsa.context import FinalRequest
from openzaya.mrsa.controls import Controls
from openzaya.mrsa.course import MrsaError, replay
from openzaya.mrsa.journal import JournalError, JsonLinesSink
from openzaya.mrsa.prompts import PromptError, Prompts, aggregation_messages, load_prompts
from openzaya.mrsa.rounds import run
from openzaya.mrsa.solution import Solution

__all__ = [
    "ConfigError",
    "Controls",
    "FinalRequest",
    "JournalError",
    "JsonLinesSink",
    "MrsaConfig",
    "MrsaError",
    "PromptError",
    "Prompts",
    "Solution",
    "aggregation_messages",
    "automatic_preset",
    "load_prompts",
    "make_config",
    "preset",
    "preset_names",
    "replay",
    "run",
]
