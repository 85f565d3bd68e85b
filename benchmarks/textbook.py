"""The paper's synthesis step written the obvious way.

It is the oracle of the tests and the yardstick of the benchmarks: a forward pre-hook for each layer and
statistic, separate passes for mean and variance, copies for permuting and cutting, autograd through it all.
It needs torch alone, and works in any floating-point type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Moments = dict[str, Tensor]
Targets = dict[str, dict[str, Moments]]

MATCHERS = ("bn", "conv_channel", "conv_patch")


def channel_moments(x: Tensor) -> Moments:
    """Return mean and biased variance, [C] each, of x [B, C, H, W] over batch and space."""
    rows = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1)
    return {"mean": rows.mean(dim=1), "var": rows.var(dim=1, unbiased=False)}


def patch_moments(x: Tensor, patch_size: int) -> Moments:
    """Return mean and biased variance, [⌈H/patch_size⌉, ⌈W/patch_size⌉] each, of x [B, C, H, W].

    They are taken over batch, channels and a patch's pixels; patches at the lower and right border hold
    the pixels that are left.
    """
    batch, channels, height, width = x.shape
    if height % patch_size == 0 and width % patch_size == 0:
        down, across = height // patch_size, width // patch_size
        cut = x.contiguous().view(batch, channels, down, patch_size, across, patch_size)
        rows = cut.permute(2, 4, 0, 1, 3, 5).contiguous().view(down * across, -1)
        mean, var = rows.mean(dim=1), rows.var(dim=1, unbiased=False)
        return {"mean": mean.view(down, across), "var": var.view(down, across)}
    patches = [
        [x[:, :, top : top + patch_size, left : left + patch_size] for left in range(0, width, patch_size)]
        for top in range(0, height, patch_size)
    ]
    mean = torch.stack([torch.stack([patch.mean() for patch in row]) for row in patches])
    var = torch.stack([torch.stack([patch.var(unbiased=False) for patch in row]) for row in patches])
    return {"mean": mean, "var": var}


def densification(images: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    """Return L_DD (Eq. 5), a scalar, of images [B, C, H, W] with labels [B].

    Images larger than 32×32 are average-pooled to it. A class with one image adds 0.
    """
    if images.shape[-1] > 32:
        images = functional.adaptive_avg_pool2d(images, 32)
    flat = images.reshape(len(images), -1)
    total = images.new_zeros(())
    for label in labels.unique():
        rows = flat[labels == label]
        spectrum = torch.linalg.eigvals(rows @ rows.T).real
        evened = torch.log_softmax(spectrum / temperature, dim=0).detach()
        total = total + (evened.exp() * (evened - torch.log_softmax(spectrum, dim=0))).sum()
    return total


class TextbookStep:
    """The loss of a synthesis step: cross-entropy + w (L'_BN + L'_Conv) + L_DD (Eqs. 5, 6, 10, 14).

    model: [B, C, H, W] to logits [B, K]; it is used in the mode that it is in (eval for frozen BatchNorm).
    bn, conv_channel, conv_patch: which statistics are matched. Sites are all BatchNorm2d, or all Conv2d, in
        the order of `named_modules`; observed is the site's input.
    targets: matcher name → site name → {"mean", "var"}, as `measure` returns; "bn" may be left out, a
        BatchNorm2d's running statistics are then its targets.
    momentum (α), drop_rate (β_dr), first_site_weight and weight (w) are one number, or
        one for each matcher by name.
    start: running averages start at 0, or at the first batch's statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        targets: Targets | None = None,
        bn: bool = True,
        conv_channel: bool = True,
        conv_patch: bool = True,
        momentum: float | Mapping[str, float] = 0.8,
        drop_rate: float | Mapping[str, float] = 0.0,
        first_site_weight: float | Mapping[str, float] = 10.0,
        weight: float | Mapping[str, float] = 0.01,
        start: Literal["zero", "first"] = "zero",
        dd_weight: float = 1.0,
        patch_size: int = 4,
    ) -> None:
        self.model, self.start, self.dd_weight, self.patch_size = model, start, dd_weight, patch_size
        chosen = dict(zip(MATCHERS, (bn, conv_channel, conv_patch), strict=True))
        self.matchers = [matcher for matcher in MATCHERS if chosen[matcher]]
        self.momentum, self.drop_rate = _each(momentum), _each(drop_rate)
        self.first_site_weight, self.weight = _each(first_site_weight), _each(weight)
        self.sites = {matcher: _sites(model, matcher) for matcher in self.matchers}
        self.targets: Targets = dict(targets or {})
        if bn and "bn" not in self.targets:
            self.targets["bn"] = {
                site: {"mean": module.running_mean.detach(), "var": module.running_var.detach()}
                for site, module in self.sites["bn"].items()
            }
        self.averages: dict[tuple[str, str, str], Tensor] = {}

    def reset(self) -> None:
        """Forget the running averages."""
        self.averages.clear()

    def loss(
        self, images: Tensor, labels: Tensor, uniforms: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and its terms by name, scalars, for images [B, C, H, W] and labels int64 [B].

        uniforms: by site name, a draw from [0, 1): the site is skipped where it is below β_dr, and then
            neither adds to the loss nor changes its averages. Without them nothing is skipped.
        """
        norms: dict[str, list[Tensor]] = {matcher: [images.new_zeros(())] for matcher in self.matchers}

        def hook_for(matcher: str, site: str, factor: float) -> Callable[[nn.Module, tuple[Tensor]], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
                if uniforms is not None and uniforms[site] < self.drop_rate[matcher]:
                    return
                for name, value in _statistics(matcher, inputs[0], self.patch_size).items():
                    norms[matcher].append(factor * self._distance(matcher, site, name, value))

            return hook

        hooks = []
        for matcher, sites in self.sites.items():
            for index, (site, module) in enumerate(sites.items()):
                factor = self.first_site_weight[matcher] if index == 0 else 1.0
                hooks.append((module, hook_for(matcher, site, factor)))
        with _hooked(hooks):
            logits = self.model(images)
        terms = {"cross_entropy": functional.cross_entropy(logits, labels)}
        for matcher in self.matchers:
            terms[matcher] = self.weight[matcher] * torch.stack(norms[matcher]).sum()
        if self.dd_weight:
            terms["dd"] = self.dd_weight * densification(images, labels)
        return torch.stack(list(terms.values())).sum(), terms

    def _distance(self, matcher: str, site: str, name: str, value: Tensor) -> Tensor:
        """Return one norm of Eq. 14 after the average has taken in the batch (Eq. 6)."""
        key = (matcher, site, name)
        if key not in self.averages:
            self.averages[key] = torch.zeros_like(value) if self.start == "zero" else value.detach()
        momentum = self.momentum[matcher]
        average = momentum * self.averages[key] + (1 - momentum) * value.detach()
        self.averages[key] = average
        target = self.targets[matcher][site][name].to(value)
        # torch takes the gradient of a norm at 0 to be 0.
        return torch.linalg.vector_norm(value - target - (value - average).detach())


def measure(model: nn.Module, batches: Iterable[Tensor], patch_size: int = 4) -> Targets:
    """Return the statistics of every Conv2d's input over a data set (Eq. 9), as `TextbookStep` takes them.

    They are the means of each batch's statistics, weighted by batch size. batches: images [B, C, H, W].
    """
    totals: Targets = {matcher: {} for matcher in MATCHERS[1:]}
    seen = 0

    def hook_for(matcher: str, site: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            total = totals[matcher].setdefault(site, {})
            for name, value in _statistics(matcher, inputs[0], patch_size).items():
                total[name] = total.get(name, torch.zeros_like(value)) + len(inputs[0]) * value

        return hook

    hooks = [
        (module, hook_for(matcher, site))
        for matcher in totals
        for site, module in _sites(model, matcher).items()
    ]
    with torch.no_grad(), _hooked(hooks):
        for images in batches:
            model(images)
            seen += len(images)
    return {
        matcher: {
            site: {name: total / seen for name, total in moments.items()} for site, moments in sites.items()
        }
        for matcher, sites in totals.items()
    }


def _each(value: float | Mapping[str, float]) -> dict[str, float]:
    return dict(value) if isinstance(value, Mapping) else dict.fromkeys(MATCHERS, value)


def _sites(model: nn.Module, matcher: str) -> dict[str, Any]:
    kind = nn.BatchNorm2d if matcher == "bn" else nn.Conv2d
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _statistics(matcher: str, x: Tensor, patch_size: int) -> Moments:
    return patch_moments(x, patch_size) if matcher == "conv_patch" else channel_moments(x)


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
