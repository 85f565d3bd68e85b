"""The compiled pass and its precisions against the eager pass; groups against batches by themselves."""

from __future__ import annotations

import re
import shutil
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from toys import ToyNet

from gvbsm.matching import forward
from gvbsm.matching.activations import ActivationRecorder
from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.targets import target_name
from gvbsm.matching.terms import Matching
from gvbsm.runtime.units import Unit
from gvbsm.stages import synthesize
from gvbsm.stages.synthesize import pays
from gvbsm_registry import Matcher, Registry

MATCHERS = ("bn", "conv_channel", "conv_patch")
COMPILERS = shutil.which("g++") or shutil.which("clang++")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return ToyNet().build(3, 8, 1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def matchers(registry: Registry) -> list[Matcher]:
    return [registry.create(Matcher, {"use": name, "momentum": 0.5}) for name in MATCHERS]


def targets(model: torch.nn.Module, matchers: list[Matcher]) -> dict[str, Tensor]:
    sites = {matcher: matcher.sites(model) for matcher in matchers[1:]}
    every = dict.fromkeys(site for found in sites.values() for site in found)
    with ActivationRecorder(model, every) as recorder:
        model(randn(16, 1, 8, 8, seed=9))
    seen = recorder.activations()
    return {
        target_name(matcher, site, name): value
        for matcher, found in sites.items()
        for site in found
        for name, value in matcher.statistics(seen[site].group(0)).items()
    }


def steps(
    model: torch.nn.Module, matchers: list[Matcher], images: list[Tensor], count: int = 1, **how: object
) -> list[tuple[dict[str, float], Tensor]]:
    """Terms and image gradient of each step, on one observer (so that running averages count)."""
    matching = Matching(model, matchers, targets(model, matchers), count)
    observer = MatchedBackbone(model, matching, **how)  # type: ignore[arg-type]
    found = []
    for batch in images:
        x = batch.clone().requires_grad_()
        logits, terms = observer.observe(x, torch.ones(count, len(observer.sites)))
        total = cross_entropy(logits, torch.arange(len(x)) % 3) + sum(terms.values())
        (gradient,) = torch.autograd.grad(total, [x])
        found.append(({name: float(term.detach()) for name, term in terms.items()}, gradient))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not COMPILERS, reason="no C++ compiler to compile with")
@pytest.mark.parametrize("count", [1, 2])
def test_compiled_equals_eager(model, matchers, count):
    images = [randn(6, 1, 8, 8, seed=seed) for seed in range(3)]
    eager = steps(model, matchers, images, count)
    compiled = steps(model, matchers, images, count, compiled=True)
    for (terms, gradient), (fast_terms, fast_gradient) in zip(eager, compiled, strict=True):
        assert fast_terms == pytest.approx(terms, rel=1e-4)
        torch.testing.assert_close(fast_gradient, gradient, rtol=1e-3, atol=1e-5)


def test_batches_side_by_side_come_out_as_each_by_itself(model, matchers):
    batches = [[randn(3, 1, 8, 8, seed=10 * group + step) for step in range(3)] for group in range(2)]
    together = steps(model, matchers, [torch.cat(pair) for pair in zip(*batches, strict=True)], 2)
    alone = [steps(model, matchers, images) for images in batches]
    for (terms, _), *parts in zip(together, *alone, strict=True):
        for name in MATCHERS:
            assert terms[name] == pytest.approx(sum(part[0][name] for part in parts), rel=1e-5)


def test_bf16_stays_near_fp32(model, matchers):
    images = [randn(6, 1, 8, 8)]
    ((exact, gradient),) = steps(model, matchers, images)
    ((rough, rough_gradient),) = steps(model, matchers, images, precision="bf16")
    assert rough == pytest.approx(exact, rel=0.05)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), rough_gradient.flatten(), dim=0)
    assert float(cosine) > 0.98
    assert rough_gradient.dtype == torch.float32


def test_without_a_compiler_it_says_so_once_and_runs_eagerly(model, matchers, monkeypatch):
    monkeypatch.setattr(forward.shutil, "which", lambda name: None)
    images = [randn(6, 1, 8, 8)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        found = steps(model, matchers, images, compiled=True)
        steps(model, matchers, images, compiled=True)
    (only,) = told
    assert re.search(r"g\+\+.*eagerly", str(only.message))
    assert torch.equal(found[0][1], steps(model, matchers, images)[0][1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: this path is untested here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_equals_cpu(model, matchers, precision):
    images = [randn(6, 1, 8, 8)]
    ((_, gradient),) = steps(model, matchers, images)
    on_device = [batch.cuda() for batch in images]
    ((_, other),) = steps(model.cuda(), matchers, on_device, compiled=True, precision=precision)
    model.cpu()
    assert (
        float(torch.nn.functional.cosine_similarity(gradient.flatten(), other.cpu().flatten(), dim=0)) > 0.98
    )


def test_batches_of_one_size_are_optimised_together(monkeypatch):
    together = []

    def optimised(context, units):
        together.append([len(unit.options["labels"]) for unit in units])
        return [({}, {})] * len(units)

    monkeypatch.setattr(synthesize, "_optimised", optimised)
    units = [Unit("synthesis", str(n), "images", None, {"labels": [0] * n}) for n in (4, 4, 4, 2)]
    assert len(synthesize.optimise_together(None, units)) == 4
    assert together == [[4, 4, 4], [2]]


def test_compiling_is_for_long_runs(registry):
    from gvbsm.recipe import loading

    made = loading.make({"synthesis": {"iterations": 4000}}, registry, where="test")
    assert pays(made.synthesis, 4)
    assert not pays(made.synthesis, 5)
