"""What the contract asks of a matcher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gvbsm_registry.kinds import Matcher
from gvbsm_registry.testing.cases import Bench, asks, demand, fail
from gvbsm_registry.testing.samples import close, compiled, images, models, observe

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def _places(bench: Bench, channels: int = 3) -> Iterator[tuple[Module, list[str]]]:
    """Yield the models in which the matcher has sites."""
    found = list(models(channels).values())
    if bench.model is not None and channels == 3:
        found.append(bench.model)
    for model in found:
        if sites := list(bench.component.sites(model)):
            yield model.to(bench.device).eval(), sites


def _statistics(bench: Bench, batch: Tensor, model: Module, sites: list[str]) -> dict[str, Tensor]:
    """Return every statistic at every site, by "site statistic"."""
    seen = observe(model, sites, batch)
    return {
        f"{site} {name}": value
        for site, activation in seen.items()
        for name, value in bench.component.statistics(activation).items()
    }


@asks("matcher")
def _sites_are_modules(bench: Bench) -> None:
    """`sites` returns names as in `model.named_modules()`, each once, the same ones every time, and finds
    some in a small model with BatchNorm, GroupNorm or LayerNorm, or in the one given as `model`."""
    found = False
    for name, model in {**models(), **({"given": bench.model} if bench.model is not None else {})}.items():
        sites = bench.component.sites(model)
        known = dict(model.named_modules())
        demand(isinstance(sites, list), f"sites is {type(sites).__name__}, no list")
        unknown = [site for site in sites if site not in known]
        demand(not unknown, f"in the model {name} it names {unknown}, which are no modules of it")
        demand(len(set(sites)) == len(sites), f"in the model {name} it names a site twice: {sites}")
        demand(bench.component.sites(model) == sites, f"in the model {name} it names other sites each time")
        found = found or bool(sites)
    demand(found, "it has no site in any model; give one that it is meant for as `model`")


@asks("matcher")
def _an_empty_model_has_no_site(bench: Bench) -> None:
    """in a model without fitting modules `sites` returns []."""
    from torch import nn

    for model in (nn.Sequential(), nn.Identity()):
        sites = bench.component.sites(model)
        for site in sites:
            demand(site in dict(model.named_modules()), f"in an empty model it names {site!r}")


@asks("matcher", devices=True)
def _statistics_are_named_finite_tensors(bench: Bench) -> None:
    """`statistics` returns at least one named float tensor, finite, on the activation's device."""
    import torch

    for model, sites in _places(bench):
        for site, activation in observe(model, sites, images(device=bench.device)).items():
            found = bench.component.statistics(activation)
            demand(isinstance(found, dict) and found, f"at {site!r} it returns {found!r}, no dict of tensors")
            for name, value in found.items():
                is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
                demand(is_float, f"at {site!r} {name!r} is no float tensor: {value!r}")
                demand(value.isfinite().all(), f"at {site!r} {name!r} is not finite")
                demand(value.device.type == bench.device, f"at {site!r} {name!r} is on {value.device}")


@asks("matcher")
def _shapes_do_not_depend_on_the_batch(bench: Bench) -> None:
    """a statistic has one name and shape whatever the number of images (one image too), because targets are
    means over batches."""
    for model, sites in _places(bench):
        shapes = []
        for count in (6, 3, 1):
            found = _statistics(bench, images(count), model, sites)
            for name, value in found.items():
                demand(value.isfinite().all(), f"{name!r} is not finite with {count} images")
            shapes.append({name: tuple(value.shape) for name, value in found.items()})
        demand(shapes[0] == shapes[1] == shapes[2], f"shapes with 6, 3 and 1 images: {shapes}")


@asks("matcher")
def _takes_grey_images_and_odd_sizes(bench: Bench) -> None:
    """activations of grey images and of odd or small sides are taken."""
    for channels, side in ((1, 16), (3, 7), (1, 5)):
        for model, sites in _places(bench, channels):
            if channels == 3 and model is bench.model:
                continue
            for name, value in _statistics(bench, images(4, channels, side), model, sites).items():
                demand(value.isfinite().all(), f"{name!r} of {channels}×{side}×{side} images is not finite")


@asks("matcher", devices=True)
def _is_differentiable(bench: Bench) -> None:
    """statistics are differentiable in the images, with finite gradients, also where all pixels are equal."""
    import torch

    for start in (images(device=bench.device), torch.zeros(4, 3, 16, 16, device=bench.device)):
        for model, sites in _places(bench):
            batch = start.clone().requires_grad_(True)
            found = _statistics(bench, batch, model, sites)
            for name, value in found.items():
                demand(
                    value.requires_grad, f"{name!r} has no gradient (detached, or computed outside torch?)"
                )
            total = torch.stack([value.double().square().sum() for value in found.values()]).sum()
            (gradient,) = torch.autograd.grad(total, [batch])
            demand(gradient.isfinite().all(), "the gradient is not finite")
            demand(start.any() <= gradient.any(), "the gradient is zero everywhere")


@asks("matcher")
def _is_deterministic_and_changes_nothing(bench: Bench) -> None:
    """equal activations give equal statistics, and the activation is left as it was."""
    import torch

    for model, sites in _places(bench):
        for site, activation in observe(model, sites, images()).items():
            before = activation.tensor.clone()
            first, second = bench.component.statistics(activation), bench.component.statistics(activation)
            demand(torch.equal(before, activation.tensor), f"at {site!r} it changes the activation in place")
            for name in first:
                demand(
                    torch.equal(first[name], second[name]), f"at {site!r} {name!r} differs the second time"
                )


@asks("matcher")
def _targets_fit_the_statistics(bench: Bench) -> None:
    """`targets` returns None, or tensors of the same names and shapes as `statistics` at that site."""
    for model, sites in _places(bench):
        modules = dict(model.named_modules())
        for site, activation in observe(model, sites, images()).items():
            targets = bench.component.targets(modules[site])
            if targets is None:
                continue
            found = {name: tuple(t.shape) for name, t in bench.component.statistics(activation).items()}
            known = {name: tuple(t.shape) for name, t in targets.items()}
            demand(found == known, f"at {site!r} statistics are {found}, targets {known}")


@asks("matcher")
def _measured_targets_have_a_key(bench: Bench) -> None:
    """`measured_by` tells all own options apart and leaves out weight, momentum, drop and first."""
    matcher = bench.component
    own = set(type(matcher).model_fields) - set(Matcher.model_fields)
    if type(matcher).targets is not Matcher.targets:
        return
    key = matcher.measured_by()
    demand(set(key) - {"use"} <= own | {"variant"}, f"measured_by holds {sorted(key)}")
    other = matcher.model_copy(update={"weight": matcher.weight + 1, "momentum": 0.1})
    demand(other.measured_by() == key, "measured_by depends on the weight or the momentum")


@asks("matcher", devices=True)
def _works_under_autocast(bench: Bench) -> None:
    """statistics of activations in bfloat16 are finite and differentiable."""
    import torch

    for model, sites in _places(bench):
        batch = images(device=bench.device).requires_grad_(True)
        with torch.autocast(bench.device, torch.bfloat16):
            found = _statistics(bench, batch, model, sites)
            total = torch.stack([value.float().square().sum() for value in found.values()]).sum()
        (gradient,) = torch.autograd.grad(total, [batch])
        demand(total.isfinite() and gradient.isfinite().all(), "a statistic or gradient is not finite")


@asks("matcher")
def _works_under_compile(bench: Bench) -> None:
    """`statistics` gives the same values and gradients under torch.compile."""
    import torch

    for model, sites in _places(bench):
        site, activation = next(iter(observe(model, sites, images()).items()))
        kind = type(activation)

        def values(tensor: Tensor, kind: Any = kind) -> dict[str, Tensor]:
            found: dict[str, Tensor] = bench.component.statistics(kind(tensor))
            return found

        plain, traced = (activation.tensor.detach().clone().requires_grad_(True) for _ in range(2))
        expected, found = values(plain), compiled(values)(traced)
        for name in expected:
            demand(close(found[name], expected[name]), f"at {site!r} {name!r} is another when compiled")
        for result in (expected, found):
            torch.stack([value.square().sum() for value in result.values()]).sum().backward()
        assert plain.grad is not None
        if traced.grad is None or not close(traced.grad, plain.grad):
            fail(f"at {site!r} the gradient is another when compiled")
        return  # one model is enough: compiling takes a second
