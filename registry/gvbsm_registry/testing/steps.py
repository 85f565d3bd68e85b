"""A synthesis step, its stock and its state written down plainly, to try components of synthesis on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gvbsm_registry.step import Memory, Network
from gvbsm_registry.testing.samples import SEED, SampleSource, images, models, observe
from gvbsm_registry.views import identity_view

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from gvbsm_registry.kinds import Matcher


class SampleStock:
    """`gvbsm_registry.Stock` of small classifiers of 4 classes, with 6 images of 16×16."""

    def __init__(self, device: str = "cpu") -> None:
        self._models = {name: model.to(device) for name, model in models().items()}
        self.names = list(self._models)
        self.accuracies = [0.9, 0.8, 0.7][: len(self.names)]
        self.images, self.labels = images(device=device), _labels(6, device)

    def pretrained(self, index: int, change: Callable[[Module], None] | None = None) -> Network:
        """A copy of a classifier, changed, then frozen."""
        import copy

        module = copy.deepcopy(self._models[self.names[index]]).requires_grad_(True)
        if change is not None:
            change(module)
        return Network(self.names[index], module.requires_grad_(False).eval())

    def fresh(self, index: int, seed: int) -> Network:
        """A classifier with normal random weights."""
        import copy

        import torch

        module, generator = copy.deepcopy(self._models[self.names[index]]), torch.Generator()
        generator.manual_seed(seed)
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5
            parameter.copy_(drawn)
        return Network(self.names[index], module.eval())


class SampleStep:
    """`gvbsm_registry.SynthesisStep` on 6 images, in the second of ten steps; nothing is shared."""

    index, steps = 1, 10

    def __init__(self, batch: Tensor, networks: Sequence[Network] | None = None) -> None:
        stock = SampleStock(batch.device.type)
        self.images, self.labels = batch, _labels(len(batch), batch.device.type)
        self.view = identity_view(len(batch), batch.shape[-1])
        self.networks = [stock.pretrained(0)] if networks is None else networks

    @property
    def seen(self) -> Tensor:
        """The images: the views change nothing."""
        return self.images

    def logits(self, network: Network) -> Tensor:
        """The logits of the images."""
        logits: Tensor = network.module(self.images)
        return logits

    def real(self, per_class: int, *, same_view: bool = False) -> tuple[Tensor, Tensor]:
        """Made-up images of the classes, of the images' own dtype, as they are: the views change nothing."""
        classes = self.labels.unique()
        made = images(per_class * len(classes), self.images.shape[1], self.images.shape[-1])
        return (made + 0.5).to(self.images), classes.repeat_interleave(per_class)

    def features(self, network: Network, images: Tensor | None = None) -> Tensor:
        """What the last linear layer is given."""
        from torch.nn import Linear

        name = [name for name, part in network.module.named_modules() if isinstance(part, Linear)][-1]
        return self.inputs(network, [name], images)[name].flatten(1)

    def inputs(
        self, network: Network, sites: Sequence[str], images: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What modules are given."""
        seen = observe(network.module, list(sites), self.images if images is None else images)
        return {site: activation.tensor for site, activation in seen.items()}

    def matched(self, matcher: Matcher) -> Tensor:
        """The sum of the squares of a matcher's statistics: there is nothing to compare them with."""
        import torch

        values = [
            value.square().sum()
            for network in self.networks
            for activation in observe(network.module, matcher.sites(network.module), self.images).values()
            for value in matcher.statistics(activation).values()
        ]
        return matcher.weight * torch.stack(values).sum()


class SampleState:
    """`gvbsm_registry.SynthesisState` of 6 images of 8×8, two of each of three classes; ten steps."""

    steps = 10

    def __init__(self) -> None:
        import torch

        self.source = SampleSource()
        self.labels, self.ranks = torch.arange(6) // 2, torch.arange(6) % 2
        self.images = images(6, 3, 8).clamp(-1, 1)
        self.active = torch.ones(6, dtype=torch.bool)
        self.generator = torch.Generator().manual_seed(SEED)
        self.memory: Memory = {}
        self.replaced, self.restarted = 0, 0

    def replace(self, images: Tensor) -> None:
        """Go on from other images."""
        self.images, self.replaced = images.detach().clone(), self.replaced + 1

    def activate(self, active: Tensor) -> None:
        """Say which images take part."""
        self.active = active.clone()

    def restart_optimizer(self) -> None:
        """Note that it was asked for."""
        self.restarted += 1


def _labels(count: int, device: str) -> Tensor:
    import torch

    return torch.arange(count, device=device) % 4
