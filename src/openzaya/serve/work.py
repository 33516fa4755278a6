"""From a request to what is run for it: whose settings apply where, and what it may cost at most."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from openzaya.backends.protocol import Capabilities, ChatParams
from openzaya.chat.grammar import check_grammar, reply_grammar
from openzaya.mrsa import FinalRequest, MrsaConfig, make_config
from openzaya.mrsa.draws import derive_seed
from openzaya.serve.chat_request import ChatRequest, RsaFields
from openzaya.serve.config import Limits
from openzaya.serve.errors import ApiError, refused
from openzaya.serve.menu import Menu, configured

_UNKNOWN_CONTEXT = 131072
"""What an unlimited reply is taken to cost where the context is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a request asks for. `choices` are whole replies, each a run of its own with a seed of its own."""

    config: MrsaConfig
    final: FinalRequest
    direct: ChatParams | None = None
    """One plain request to the source instead of a run, with this sampling."""
    choices: int = 1
    every_candidate: bool = False
    """All candidates of the last round are the choices (Zyphra's `rsa_final_n` above 1)."""
    progress: bool = True
    rsa: RsaFields | None = None

    def seeded(self, seed: int) -> Work:
        """The same with another seed."""
        config = self.config.model_copy(update={"seed": seed})
        return replace(self, config=config, direct=self.direct and replace(self.direct, seed=seed))

    def of_choice(self, index: int) -> Work:
        """The same for one choice, with its own seed."""
        if index == 0:
            return self
        return self.seeded(derive_seed(self.config.seed, 0, index, "choice"))

    def most_tokens(self, context: int | None) -> int:
        """The most tokens that this may come to generate."""
        unlimited = context or _UNKNOWN_CONTEXT
        if self.direct is not None:
            return self.choices * (self.direct.max_tokens or unlimited)
        last = self.config.final_tokens or unlimited
        rounds = self.config.rounds * self.config.candidates * self.config.beta + self.config.last_width * last
        most = rounds + (0 if self.every_candidate else self.final.max_tokens or last)
        return self.choices * min(most, self.config.max_total_tokens or most)


def plan_work(
    request: ChatRequest, menu: Menu, capabilities: Capabilities, limits: Limits, *, progress: bool = True
) -> Work:
    """What this request asks for; raises ApiError or ConfigError where it cannot be had or costs more than allowed."""
    _refuse_constraints(request, capabilities)
    recipe = _recipe(request, menu)
    progress = bool(recipe.pop("progress", progress))
    chosen = frozenset(recipe)
    config = menu.configured(recipe)
    if request.rsa is not None:
        work = _rsa_work(request, request.rsa, config)
    else:
        work = _work(request, config, chosen)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    deadline = min(limits.deadline, work.config.deadline or limits.deadline)
    if "seed" in chosen:
        seed = work.config.seed
    config = work.config.model_copy(update={"deadline": deadline})
    work = replace(work, config=config, progress=progress).seeded(seed)
    _check_cost(work, capabilities.context, limits)
    return work


def _recipe(request: ChatRequest, menu: Menu) -> dict[str, Any]:
    """The preset and settings: the request's own, else the model's suffix's, else its effort's, else the default."""
    name, at, suffix = request.model.rpartition("@") if "@" in request.model else (request.model, "", "")
    if name != menu.name and request.model != menu.name:
        raise ApiError(
            404,
            f"there is no model {request.model!r} here; there is {menu.name!r}, and with a preset {menu.name}@NAME",
            code="model_not_found",
            param="model",
        )
    recipe: Mapping[str, Any] = menu.default
    if request.model != menu.name and at:
        recipe = {"preset": suffix}
    elif request.reasoning_effort is not None:
        recipe = menu.efforts[request.reasoning_effort]
    if request.mrsa is not None:
        if request.rsa is not None:
            raise refused("mrsa and rsa_* fields are two ways to ask for the same; give one of them", param="mrsa")
        own = {key: value for key, value in request.mrsa.items() if value is not None}
        if own.get("preset") == "auto":
            own = {**menu.default, **own, "preset": menu.default["preset"]}
        recipe = own if "preset" in own else {**recipe, **own}
    return menu.unfolded(recipe)


def _work(request: ChatRequest, config: MrsaConfig, chosen: frozenset[str]) -> Work:
    final = _final(request)
    if config.candidates == 1 and not config.rounds and config.select != "final":
        params = ChatParams(
            max_tokens=request.limit or config.final_tokens,
            temperature=config.temperature if request.temperature is None else request.temperature,
            top_p=request.top_p or config.top_p,
            top_k=_top_k(request.top_k, config.top_k),
            min_p=config.min_p if request.min_p is None else request.min_p,
            stop=final.stop,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            enable_thinking=config.enable_thinking,
            force_answer=config.force_answer,
            tools=final.tools,
            tool_choice=final.tool_choice,
            response_format=final.response_format,
        )
        return Work(config=config, final=final, direct=params, choices=request.n or 1)
    _refuse_logprobs(request)
    select = config.select if "select" in chosen or config.select != "auto" else "final"
    if final.forces_final:
        select = "final"
    asked = {
        "final_temperature": request.temperature,
        "final_top_p": request.top_p or None,
        "final_top_k": None if request.top_k is None else max(0, request.top_k),
        "final_min_p": request.min_p,
    }
    update = {name: value for name, value in asked.items() if value is not None and name not in chosen}
    config = _changed(config, select=select, **update)
    if request.limit is not None:
        if select == "final":
            final = replace(final, max_tokens=request.limit)
        else:
            config = _changed(config, final_tokens=request.limit)
    return Work(config=config, final=final, choices=request.n or 1)


def _rsa_work(request: ChatRequest, rsa: RsaFields, default: MrsaConfig) -> Work:
    """Zyphra's fields: T aggregation passes, of which the last has the width `final_n` and is the answer.

    A last pass of width 1 is our final call after T - 1 rounds, so that it streams and meets the client's demands.
    """
    passes = default.rounds if rsa.t is None else rsa.t
    if passes <= 0:
        single = configured({"preset": "single", "final_tokens": default.final_tokens})
        return replace(_work(request, single, frozenset()), rsa=rsa)
    _refuse_logprobs(request)
    candidates = rsa.n or request.n or default.candidates
    beta = rsa.short_resp_len or default.beta
    tail = "whole" if rsa.tail_window is False else "hybrid" if rsa.pacore else default.tail
    tau = beta if rsa.tail_window is False else min(beta, rsa.tail_window_len or default.tau)
    settings: dict[str, Any] = {
        "candidates": candidates,
        "tails": min(candidates, rsa.k or default.tails),
        "beta": beta,
        "tau": tau,
        "tail": tail,
        "temperature": request.temperature or default.temperature,  # a harness's 0 would make all rollouts one
        "top_p": request.top_p or default.top_p,
        "top_k": _top_k(request.top_k, default.top_k),
        "final_temperature": default.final_temperature if rsa.final_temperature is None else rsa.final_temperature,
        "final_top_p": rsa.final_top_p or default.final_top_p,
        "final_top_k": _top_k(rsa.final_top_k, default.final_top_k),
        "concurrency": rsa.max_concurrency or default.concurrency,
        "minimum": min(default.minimum, candidates),
        "quorum": None,
    }
    final = _final(request)
    last = request.limit or default.final_tokens
    width = 1 if rsa.final_n is None else min(rsa.final_n or candidates, candidates)
    if width == 1:
        # Every pass but the last has the limit β, the one before it included.
        settings |= {"rounds": passes - 1, "select": "final", "final_tokens": beta, "final_n": None}
        return Work(config=_changed(default, **settings), final=replace(final, max_tokens=last), rsa=rsa)
    if final.forces_final:
        raise refused(
            f"rsa_final_n is {rsa.final_n}, and tools, response_format and stop shape one final call; leave it out",
            param="rsa_final_n",
        )
    settings |= {"rounds": passes, "select": "majority", "final_tokens": last, "final_n": width}
    return Work(config=_changed(default, **settings), final=final, every_candidate=True, rsa=rsa)


def _final(request: ChatRequest) -> FinalRequest:
    plain = (request.response_format or {}).get("type", "text") == "text"
    return FinalRequest(
        tools=tuple(request.tools or ()),
        tool_choice=request.tool_choice if request.tools else None,
        response_format=None if plain else request.response_format,
        stop=request.stop,
    )


def _top_k(given: int | None, default: int) -> int:
    """-1 is how some servers spell 0: off."""
    return default if given is None else max(0, given)


def _changed(config: MrsaConfig, **settings: Any) -> MrsaConfig:
    return make_config({**config.model_dump(), **settings})


def _refuse_constraints(request: ChatRequest, capabilities: Capabilities) -> None:
    """The embedded engine would refuse these at the final call, after all the rounds."""
    if not capabilities.local:
        return
    param = "tool_choice" if request.tool_choice not in (None, "auto", "none") else "response_format"
    try:
        grammar = reply_grammar(request.response_format, request.tools or (), request.tool_choice)
        if grammar is not None:
            check_grammar(grammar)
    except ValueError as error:
        raise refused(str(error), param=param) from error


def _refuse_logprobs(request: ChatRequest) -> None:
    if request.logprobs:
        raise refused(
            "logprobs belong to one plain reply, and this request runs rounds; ask for the model with @single",
            param="logprobs",
        )


def _check_cost(work: Work, context: int | None, limits: Limits) -> None:
    widest = work.choices * max(work.config.candidates, work.config.last_width)
    if widest > limits.largest_round:
        raise refused(
            f"the request asks for {widest} rollouts at once and at most {limits.largest_round} are allowed here; "
            "lower N or n",
            code="run_too_large",
        )
    most = work.most_tokens(context)
    if most > limits.largest_run:
        raise refused(
            f"the request may generate {most:,} tokens and at most {limits.largest_run:,} are allowed here; lower N, "
            "T, β or n, choose a smaller preset, or give mrsa.max_total_tokens",
            code="run_too_large",
        )
