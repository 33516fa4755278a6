"""What the service offers: the model's name, its default, the rungs of `reasoning_effort`, the presets that fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openzaya.backends.protocol import Capabilities
from openzaya.mrsa import MrsaConfig, automatic_preset, preset, preset_names
from openzaya.serve.config import ServeConfig

_PROMPT_TOKENS = 256
"""Room for a question and the wording, when a preset is judged before any question is known."""


@dataclass(frozen=True, slots=True)
class Menu:
    """Fixed while the service runs. A recipe is a mapping with `preset` and settings of Markovian RSA."""

    name: str
    default: Mapping[str, Any]
    efforts: Mapping[str, Mapping[str, Any]]
    presets: tuple[str, ...]
    """Those that fit the model's context, the operator's own first."""
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The recipes of the operator's own presets."""

    def models(self) -> list[str]:
        """The names that clients can choose from, the default first."""
        return [self.name, *(f"{self.name}@{name}" for name in self.presets)]

    def unfolded(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The same over a bundled preset, where it is over one of the operator's own."""
        own = self.own.get(str(recipe["preset"]))
        return dict(recipe) if own is None else {**own, **recipe, "preset": own["preset"]}


def make_menu(config: ServeConfig, capabilities: Capabilities, device: str = "cpu") -> Menu:
    """The menu of a configured service over a source; raises ValueError where the default cannot be run."""
    model = config.model or "tiny"
    default = dict(config.mrsa)
    if default.get("preset", "auto") == "auto":
        default["preset"] = automatic_preset(model, local=capabilities.local, device=device)
    _check_own(config.presets)
    menu = Menu(config.name or _own_name(model, capabilities), {}, {}, (), config.presets)
    default = menu.unfolded(default)
    efforts: dict[str, dict[str, Any]] = _ladder(default)
    efforts.update({str(name): menu.unfolded(recipe) for name, recipe in config.efforts.items()})
    for recipe in (default, *efforts.values()):
        configured(recipe)
    recipes = {**config.presets, **{name: {"preset": name} for name in preset_names()}}
    fitting = tuple(name for name, recipe in recipes.items() if fits(configured(recipe), capabilities.context))
    return replace(menu, default=default, efforts=efforts, presets=fitting)


def _check_own(presets: Mapping[str, Mapping[str, Any]]) -> None:
    for name, recipe in presets.items():
        if name in ("auto", *preset_names()) or "@" in name:
            raise ValueError(f"presets.{name} cannot be a name of your own: it is taken, or has an @; give another")
        if recipe.get("preset") not in preset_names():
            raise ValueError(
                f"presets.{name} is over the preset {recipe.get('preset')!r}; name one of {', '.join(preset_names())}"
            )


def configured(recipe: Mapping[str, Any]) -> MrsaConfig:
    """The configuration of a recipe; raises ConfigError."""
    return preset(str(recipe["preset"]), **{name: value for name, value in recipe.items() if name != "preset"})


def fits(config: MrsaConfig, context: int | None) -> bool:
    """Whether a short question has room in the context of a model."""
    if context is None or not config.rounds:
        return True
    return _PROMPT_TOKENS + config.tails * config.tau + config.beta <= context


def _ladder(default: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each effort runs: medium is the default, and without reasoning there is nothing to aggregate."""
    ladder: dict[str, dict[str, Any]] = {
        "none": {"preset": "single", "enable_thinking": False},
        "minimal": {"preset": "single"},
        "medium": dict(default),
    }
    if default["preset"] in ("light", "default", "headline", "extra"):
        return {**ladder, "low": {"preset": "light"}, "high": {"preset": "headline"}, "xhigh": {"preset": "extra"}}
    # Elsewhere the lengths are fitted to the model, and the width is what there is to spend.
    config = configured(default)
    width = config.candidates
    widths = {"low": max(config.tails, width // 2), "high": 2 * width, "xhigh": 4 * width}
    return {**ladder, **{name: {**default, "candidates": count} for name, count in widths.items()}}


def _own_name(model: str, capabilities: Capabilities) -> str:
    if not capabilities.local:
        return capabilities.model or "model"
    if model == "tiny":
        return "zaya1-tiny"
    return Path(model).name if Path(model).exists() else model
