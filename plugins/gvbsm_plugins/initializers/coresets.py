"""Four ways to choose real images; with zero iterations they are coresets.

Every choice is a ranking of a class's training images that depends on the class and the source alone: rank r
is the same image whatever the number of images per class and however they are split into batches.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import GvbsmError, Initializer, Source

if TYPE_CHECKING:
    from torch import Generator, Tensor


class _Ranked(Initializer):
    """Real images, by a ranking of each class's training images."""

    @abstractmethod
    def ranking(self, members: Tensor, count: int, label: int, source: Source) -> Tensor:
        """Return the first `count` choices, int64 [count]: distinct positions in `members`.

        members: int64 [n], where in the training split the class's images are, n ≥ count.
        """

    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        """Return the chosen images; raises GvbsmError if a class has fewer images than are asked for."""
        import torch

        labels, ranks, truth = labels.cpu(), ranks.cpu(), source.train.labels.cpu()
        chosen = torch.empty_like(labels)
        for label in labels.unique().tolist():
            rows = labels == label
            members = (truth == label).nonzero().flatten()
            count = int(ranks[rows].max()) + 1
            if count > len(members):
                raise GvbsmError(
                    f"synthesis.initializer {self.name!r}: class {source.train.classes[label]!r} has "
                    f"{len(members)} training images where {count} are asked for; "
                    f"lower synthesis.ipc to {len(members)} or start from 'noise'"
                )
            chosen[rows] = members[self.ranking(members, count, label, source)][ranks[rows]]
        return source.normalize(source.train.read(chosen))


class RealImages(_Ranked):
    """Random real images: a permutation of each class, seeded by the run's seed and the class."""

    name = "real"
    uses_networks = False

    def looks_at(self, per_class: int) -> int:
        return 1

    def ranking(self, members: Tensor, count: int, label: int, source: Source) -> Tensor:
        return shuffled(len(members), source, label)[:count]


class Herding(_Ranked):
    """Herding: greedily the image that brings the mean of those chosen nearest to the class mean.

    On features of the first pretrained backbone, Euclidean distance (DC's and DM's coreset protocol).
    """

    name = "herding"

    def ranking(self, members: Tensor, count: int, label: int, source: Source) -> Tensor:
        import torch

        features = source.features(members).double()
        centre, total = features.mean(0), torch.zeros_like(features[0])
        free = torch.ones(len(features), dtype=torch.bool)
        chosen: list[int] = []
        while len(chosen) < count:
            distance = ((total + features) / (len(chosen) + 1) - centre).norm(dim=1)
            best = int(distance.where(free, torch.inf).argmin())
            chosen.append(best)
            free[best] = False
            total += features[best]
        return torch.tensor(chosen)


class KCenter(_Ranked):
    """Greedy k-center: first the image nearest to the class mean, then the one farthest from those chosen.

    On features of the first pretrained backbone, Euclidean distance (DC's and DM's coreset protocol).
    """

    name = "k_center"

    def ranking(self, members: Tensor, count: int, label: int, source: Source) -> Tensor:
        import torch

        features = source.features(members).double()
        chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
        uncovered = (features - features[chosen[0]]).norm(dim=1)
        while len(chosen) < count:
            uncovered[chosen[-1]] = -1  # never again, even where all that is left are its duplicates
            chosen.append(int(uncovered.argmax()))
            uncovered = uncovered.minimum((features - features[chosen[-1]]).norm(dim=1))
        return torch.tensor(chosen)


class Forgetting(_Ranked):
    """The images forgotten most often in a short training of the first backbone (Toneva et al., 2019).

    An image is forgotten when it is classified rightly in one epoch and wrongly in the next, as seen in
    training, before the step on its batch. One that is never learnt counts as the most forgotten. Equals are
    ranked at random, by the run's seed.
    """

    name = "forgetting"

    epochs: int = Field(10, ge=1, description="how many epochs the backbone is trained for")
    learning_rate: float = Field(0.05, gt=0, description="of SGD with momentum 0.9, constant")
    batch: int = Field(128, ge=1, description="images per training step, at most")

    def ranking(self, members: Tensor, count: int, label: int, source: Source) -> Tensor:
        events = source.prepared["events"][members]
        order = shuffled(len(members), source, label)
        return order[events[order].argsort(descending=True, stable=True)][:count]

    def prepare(self, source: Source) -> dict[str, Tensor]:
        """Return the forgetting `events` by training image, int64 [N]; `epochs` for those never learnt."""
        import torch

        truth = source.train.labels.cpu()
        events = torch.zeros_like(truth)
        right, learnt = torch.zeros(2, len(truth), dtype=torch.bool)
        order = torch.Generator().manual_seed(seed_of(source, "forgetting"))
        steps = -(-len(truth) // self.batch)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed_of(source, "forgetting"))
            model = source.backbone().train()
            optimizer = torch.optim.SGD(model.parameters(), self.learning_rate, momentum=0.9)
            for _ in range(self.epochs):
                # Batches of equal size: BatchNorm can't train on a last batch of one image.
                for batch in torch.randperm(len(truth), generator=order).tensor_split(steps):
                    images = source.normalize(source.train.read(batch))
                    labels = truth[batch].to(images.device)
                    logits = model(images)
                    now = (logits.argmax(1) == labels).cpu()
                    events[batch] += right[batch] & ~now
                    right[batch], learnt[batch] = now, learnt[batch] | now
                    optimizer.zero_grad(set_to_none=True)
                    torch.nn.functional.cross_entropy(logits, labels).backward()
                    optimizer.step()
        return {"events": events.where(learnt, self.epochs)}


def seed_of(source: Source, *what: object) -> int:
    """Return a seed that depends on the run's and on what it is for."""
    text = "/".join(map(str, (source.seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shuffled(count: int, source: Source, label: int) -> Tensor:
    """Return a permutation of a class's images, int64 [count], by the run's seed and the class."""
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(source, "class", label)))
