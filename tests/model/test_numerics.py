"""The two profiles: the same in float32; in bfloat16 the lifted operations of `report` come closer to the truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from openzaya.model.attention import CCAProjection, QKNorm
from openzaya.model.cache import DecodeCache
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.numerics import HF, REPORT, Numerics, numerics_profile
from openzaya.model.placement import place
from openzaya.model.residual import RMSNorm
from openzaya.model.router import Router


def test_profiles_are_found_by_name_and_others_refused():
    assert numerics_profile("hf") is HF
    assert numerics_profile("report") is REPORT
    with pytest.raises(ValueError, match="numerics is 'fp8'; the profiles are 'hf' and 'report'"):
        numerics_profile("fp8")


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_in_float32_the_two_profiles_agree_to_the_bit(seed, draw_config, draw_model):
    config = draw_config(70 + seed)
    ids = torch.randint(2, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw_model(config, seed, HF)(ids), draw_model(config, seed, REPORT)(ids))


# ---- one lifted operation at a time, bfloat16 in, against float64 of the same numbers ----


def _pair(build: Callable[[Numerics], nn.Module]) -> dict[Numerics, nn.Module]:
    """The same bfloat16 weights under both profiles."""
    modules = {}
    for profile in (HF, REPORT):
        torch.manual_seed(0)
        modules[profile] = build(profile).to(torch.bfloat16)
        for parameter in modules[profile].parameters():
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return modules


def _error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


@pytest.fixture
def config(draw_config) -> ZayaConfig:
    return draw_config(
        90, hidden_size=64, head_dim=16, num_key_value_heads=2, num_attention_heads=6, cca_time0=1, cca_time1=1
    )


@torch.no_grad()
def test_rms_norm_rounds_once_in_the_report_profile(config):
    norms = _pair(lambda profile: RMSNorm(64, 1e-5, profile))
    x = torch.randn(200, 64) * 3
    weight = norms[HF].weight.double()
    truth = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5) * weight
    assert _error(norms[REPORT](x), truth) < 0.95 * _error(norms[HF](x), truth)


@torch.no_grad()
def test_qk_norm_runs_in_float32_in_the_report_profile(config):
    norms = _pair(lambda profile: QKNorm(config, profile))
    q, k = torch.randn(1, 50, 6, 16).bfloat16(), torch.randn(1, 50, 2, 16).bfloat16()
    truth = 4 * q.double() / q.double().norm(dim=-1, keepdim=True)
    results = {profile: norm(q, k)[0] for profile, norm in norms.items()}
    assert results[REPORT].dtype == torch.float32
    assert _error(results[REPORT], truth) < 1e-6 < _error(results[HF], truth)


@torch.no_grad()
def test_the_mean_of_queries_and_keys_is_float32_in_the_report_profile(config):
    projections = _pair(lambda profile: CCAProjection(config, 0, profile))
    placement = place(config, torch.zeros(1, 20, dtype=torch.long), None, None, None)
    x = torch.randn(1, 20, 64).bfloat16()
    errors = {}
    for profile, projection in projections.items():
        projection.conv_qk_grouped.weight.zero_()  # leaves the mean alone
        projection.conv_qk_grouped.bias.zero_()
        q = projection.q_proj(x).unflatten(-1, (2, 3, 16)).double()
        k = projection.k_proj(x).unflatten(-1, (2, 1, 16)).double()
        errors[profile] = _error(projection(x, placement, None)[0], ((q + k) / 2).flatten(2, 3))
    assert errors[REPORT] < 1e-6 < errors[HF]


@torch.no_grad()
def test_the_router_softmax_is_float32_in_the_report_profile(config):
    routers = _pair(lambda profile: Router(config, 0, profile))
    x = torch.randn(100, 64).bfloat16()
    errors = {}
    for profile, router in routers.items():
        router.balancing_biases.zero_()
        chosen, weight, _state = router(x, None, None)
        scores = router.router_mlp(router.down_proj(x)).double()
        errors[profile] = _error(weight, scores.softmax(-1).gather(-1, chosen[:, None]).squeeze(-1))
    assert errors[REPORT] < 1e-6 < errors[HF]


@torch.no_grad()
def test_the_head_is_float32_in_the_report_profile(draw_config, draw_model):
    config = draw_config(91, tie_word_embeddings=True)
    hidden = torch.randn(30, config.hidden_size).bfloat16()
    models = {profile: draw_model(config, 0, profile).to(torch.bfloat16) for profile in (HF, REPORT)}
    truth = hidden.double() @ models[HF].model.embed_tokens.weight.double().T
    results = {profile: model.logits(hidden) for profile, model in models.items()}
    assert {result.dtype for result in results.values()} == {torch.float32}
    assert _error(results[REPORT], truth) < 1e-6 < _error(results[HF], truth)


@pytest.mark.parametrize(("profile", "state"), [(HF, torch.bfloat16), (REPORT, torch.float32)])
def test_the_caches_state_has_the_dtype_of_the_profile(profile, state, draw_config):
    cache = DecodeCache(draw_config(92), 1, dtype=torch.bfloat16, numerics=profile)
    assert cache.columns.dtype == cache.delayed.dtype == state
    assert cache.keys.dtype == torch.bfloat16


@pytest.mark.parametrize("profile", [HF, REPORT], ids=["hf", "report"])
@torch.no_grad()
def test_a_bfloat16_model_decodes_close_to_its_own_full_forward(profile, draw_config, draw_model, relative_error):
    config = draw_config(93, cca_time0=2, cca_time1=2, num_hidden_layers=1)
    model: ZayaForCausalLM = draw_model(config, 1, profile).to(torch.bfloat16)
    ids = torch.randint(2, config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    cache = DecodeCache(config, 2, dtype=torch.bfloat16, numerics=profile)
    for place_ in range(8):
        logits = model.decode(ids[:, place_ : place_ + 1], cache)
    assert relative_error(logits, model(ids)[:, -1]) < 2e-2
