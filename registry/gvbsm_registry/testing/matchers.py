"""What the contract asks of a matcher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gvbsm_registry.kinds import Matcher
from gvbsm_registry.testing.requirements import Context, fail, require, requirement
from gvbsm_registry.testing.samples import close, compiled, images, models, observe

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def _places(context: Context, channels: int = 3) -> Iterator[tuple[Module, list[str]]]:
    """Yield the models in which the matcher has sites."""
    candidates = list(models(channels).values())
    if context.model is not None and channels == 3:
        candidates.append(context.model)
    for model in candidates:
        if sites := list(context.component.sites(model)):
            yield model.to(context.device).eval(), sites


def _statistics(context: Context, batch: Tensor, model: Module, sites: list[str]) -> dict[str, Tensor]:
    """Return every statistic at every site, by "site statistic"."""
    seen = observe(model, sites, batch)
    return {
        f"{site} {name}": value
        for site, activation in seen.items()
        for name, value in context.component.statistics(activation).items()
    }


@requirement("matcher")
def _sites_are_modules(context: Context) -> None:
    """`sites` returns names as in `model.named_modules()`, each once, the same ones every time, and finds
    some in a small model with BatchNorm, GroupNorm or LayerNorm, or in the one given as `model`."""
    has_sites = False
    for name, model in {
        **models(),
        **({"given": context.model} if context.model is not None else {}),
    }.items():
        sites = context.component.sites(model)
        known = dict(model.named_modules())
        require(isinstance(sites, list), f"sites is {type(sites).__name__}, not a list")
        unknown = [site for site in sites if site not in known]
        require(not unknown, f"in the model {name} it names {unknown}, which are not modules of it")
        require(len(set(sites)) == len(sites), f"in the model {name} it names a site twice: {sites}")
        require(
            context.component.sites(model) == sites, f"in the model {name} it names other sites each time"
        )
        has_sites = has_sites or bool(sites)
    require(has_sites, "it has no site in any model; give one that it is meant for as `model`")


@requirement("matcher")
def _an_empty_model_has_no_site(context: Context) -> None:
    """in a model without fitting modules `sites` returns []."""
    from torch import nn

    for model in (nn.Sequential(), nn.Identity()):
        sites = context.component.sites(model)
        for site in sites:
            require(site in dict(model.named_modules()), f"in an empty model it names {site!r}")


@requirement("matcher", devices=True)
def _statistics_are_named_finite_tensors(context: Context) -> None:
    """`statistics` returns at least one named float tensor, finite, on the activation's device."""
    import torch

    for model, sites in _places(context):
        for site, activation in observe(model, sites, images(device=context.device)).items():
            statistics = context.component.statistics(activation)
            require(
                isinstance(statistics, dict) and statistics,
                f"at {site!r} it returns {statistics!r}, not a dict of tensors",
            )
            for name, value in statistics.items():
                is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
                require(is_float, f"at {site!r} {name!r} is {value!r}, not a float tensor")
                require(value.isfinite().all(), f"at {site!r} {name!r} is not finite")
                require(value.device.type == context.device, f"at {site!r} {name!r} is on {value.device}")


@requirement("matcher")
def _shapes_do_not_depend_on_the_batch(context: Context) -> None:
    """a statistic has one name and shape whatever the number of images (one image too), because targets are
    means over batches."""
    for model, sites in _places(context):
        shapes = []
        for count in (6, 3, 1):
            statistics = _statistics(context, images(count), model, sites)
            for name, value in statistics.items():
                require(value.isfinite().all(), f"{name!r} is not finite with {count} images")
            shapes.append({name: tuple(value.shape) for name, value in statistics.items()})
        require(shapes[0] == shapes[1] == shapes[2], f"shapes with 6, 3 and 1 images: {shapes}")


@requirement("matcher")
def _takes_grey_images_and_odd_sizes(context: Context) -> None:
    """activations of grey images and of odd or small sizes are taken."""
    for channels, patch_size in ((1, 16), (3, 7), (1, 5)):
        for model, sites in _places(context, channels):
            if channels == 3 and model is context.model:
                continue
            for name, value in _statistics(context, images(4, channels, patch_size), model, sites).items():
                require(
                    value.isfinite().all(),
                    f"{name!r} of {channels}×{patch_size}×{patch_size} images is not finite",
                )


@requirement("matcher", devices=True)
def _is_differentiable(context: Context) -> None:
    """statistics are differentiable in the images, with finite gradients, also where all pixels are equal."""
    import torch

    for start in (images(device=context.device), torch.zeros(4, 3, 16, 16, device=context.device)):
        for model, sites in _places(context):
            batch = start.clone().requires_grad_(True)
            statistics = _statistics(context, batch, model, sites)
            for name, value in statistics.items():
                require(
                    value.requires_grad, f"{name!r} has no gradient (detached, or computed outside torch?)"
                )
            total = torch.stack([value.double().square().sum() for value in statistics.values()]).sum()
            (gradient,) = torch.autograd.grad(total, [batch])
            require(gradient.isfinite().all(), "the gradient is not finite")
            require(start.any() <= gradient.any(), "the gradient is zero everywhere")


@requirement("matcher")
def _is_deterministic_and_changes_nothing(context: Context) -> None:
    """equal activations give equal statistics, and the activation is left as it was."""
    import torch

    for model, sites in _places(context):
        for site, activation in observe(model, sites, images()).items():
            before = activation.tensor.clone()
            first, second = context.component.statistics(activation), context.component.statistics(activation)
            require(torch.equal(before, activation.tensor), f"at {site!r} it changes the activation in place")
            for name in first:
                require(
                    torch.equal(first[name], second[name]), f"at {site!r} {name!r} differs the second time"
                )


@requirement("matcher")
def _targets_fit_the_statistics(context: Context) -> None:
    """`targets` returns None, or tensors of the same names and shapes as `statistics` at that site."""
    for model, sites in _places(context):
        modules = dict(model.named_modules())
        for site, activation in observe(model, sites, images()).items():
            targets = context.component.targets(modules[site])
            if targets is None:
                continue
            statistics = {
                name: tuple(t.shape) for name, t in context.component.statistics(activation).items()
            }
            known = {name: tuple(t.shape) for name, t in targets.items()}
            require(statistics == known, f"at {site!r} statistics are {statistics}, targets {known}")


@requirement("matcher")
def _measured_targets_have_a_key(context: Context) -> None:
    """`measured_by` tells all own options apart and leaves out those of the kind."""
    matcher = context.component
    own = set(type(matcher).model_fields) - set(Matcher.model_fields)
    if type(matcher).targets is not Matcher.targets:
        return
    key = matcher.measured_by()
    require(set(key) - {"use"} <= own | {"variant"}, f"measured_by holds {sorted(key)}")
    other = matcher.model_copy(update={"weight": matcher.weight + 1, "momentum": 0.1})
    require(other.measured_by() == key, "measured_by depends on the weight or the momentum")


@requirement("matcher", devices=True)
def _works_under_autocast(context: Context) -> None:
    """statistics of activations in bfloat16 are finite and differentiable."""
    import torch

    for model, sites in _places(context):
        batch = images(device=context.device).requires_grad_(True)
        with torch.autocast(context.device, torch.bfloat16):
            statistics = _statistics(context, batch, model, sites)
            total = torch.stack([value.float().square().sum() for value in statistics.values()]).sum()
        (gradient,) = torch.autograd.grad(total, [batch])
        require(total.isfinite() and gradient.isfinite().all(), "a statistic or gradient is not finite")


@requirement("matcher")
def _works_under_compile(context: Context) -> None:
    """`statistics` gives the same values and gradients under torch.compile."""
    import torch

    for model, sites in _places(context):
        site, activation = next(iter(observe(model, sites, images()).items()))
        kind = type(activation)

        def values(tensor: Tensor, kind: Any = kind) -> dict[str, Tensor]:
            statistics: dict[str, Tensor] = context.component.statistics(kind(tensor))
            return statistics

        eager, traced = (activation.tensor.detach().clone().requires_grad_(True) for _ in range(2))
        expected, actual = values(eager), compiled(values)(traced)
        for name in expected:
            require(close(actual[name], expected[name]), f"at {site!r} {name!r} differs when compiled")
        for result in (expected, actual):
            torch.stack([value.square().sum() for value in result.values()]).sum().backward()
        assert eager.grad is not None
        if traced.grad is None or not close(traced.grad, eager.grad):
            fail(f"at {site!r} the gradient differs when compiled")
        return  # one model is enough: compiling takes a second
