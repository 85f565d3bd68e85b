from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.transforms.functional import resized_crop

from gvbsm_plugins.augmentations import ResizedCrop
from gvbsm_plugins.initializers import Forgetting, Herding, KCenter, Mosaic, Noise, RealImages
from gvbsm_plugins.initializers.coresets import seed_of
from gvbsm_registry import CommitteeMember, GvbsmError, TensorSplit


class Linear(nn.Module):
    """Logits by a fixed matrix [classes, pixels]."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


class Given:
    """A source of four classes with 12, 7, 5 and 1 images; features are a fixed projection of the pixels."""

    def __init__(self, seed: int = 0, noisy: bool = False) -> None:
        generator = torch.Generator().manual_seed(5)
        labels = torch.tensor([0] * 12 + [1] * 7 + [2] * 5 + [3])[torch.randperm(25, generator=generator)]
        images = torch.randint(0, 80, (25, 1, 5, 5), generator=generator)
        images = images + 25 * labels[:, None, None, None] * (torch.arange(5) % 2)
        if noisy:
            images = torch.randint(0, 255, (25, 1, 5, 5), generator=generator)
        self.train = TensorSplit(images.to(torch.uint8), labels, ("ant", "bee", "cat", "dog"))
        self.seed, self.classes = seed, 4
        self.projection = torch.randn(25, 6, generator=generator)
        self.asked: list[torch.Tensor] = []
        self.prepared: dict[str, torch.Tensor] = {}
        self.trained = 0
        self.model: nn.Module | None = None
        weights = torch.randn(2, 4, 25, generator=generator)
        self.committee = tuple(
            CommitteeMember(str(number), 0.5, Linear(w)) for number, w in enumerate(weights)
        )

    def features(self, indices):
        self.asked.append(indices)
        return self.train.read(indices).float().flatten(1) / 255 @ self.projection

    def backbone(self):
        self.trained += 1
        return self.model or nn.Sequential(
            nn.Flatten(), nn.Linear(25, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
        )

    def normalize(self, images):
        return images.float() / 255 - 0.5


def prepared(initializer, source: Given) -> Given:
    source.prepared = initializer.prepare(source)
    return source


REAL = [RealImages(), Herding(), KCenter(), Forgetting(epochs=3, batch=8)]


def positions(initializer, source: Given, label: int, count: int) -> list[int]:
    """Which training images the initializer takes, found by their pixels."""
    labels = torch.full((count,), label)
    source = source if source.prepared else prepared(initializer, source)
    taken = initializer.images(labels, torch.arange(count), source, torch.Generator())
    pool = source.normalize(source.train.images)
    return [int((pool == image).flatten(1).all(1).nonzero().item()) for image in taken]


@pytest.mark.parametrize("initializer", REAL, ids=lambda i: i.name)
def test_images_are_distinct_of_their_class_and_nested(initializer):
    source = Given()
    for label, size in enumerate([12, 7, 5, 1]):
        everything = positions(initializer, source, label, size)
        assert sorted(everything) == (source.train.labels == label).nonzero().flatten().tolist()
        for count in range(1, size):
            assert positions(initializer, source, label, count) == everything[:count]


@pytest.mark.parametrize("initializer", REAL, ids=lambda i: i.name)
def test_splitting_into_batches_and_the_generator_change_nothing(initializer):
    labels, ranks = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    whole = initializer.images(
        labels, ranks, prepared(initializer, Given()), torch.Generator().manual_seed(1)
    )
    assert whole.shape == (7, 1, 5, 5)
    assert whole.dtype == torch.float32
    order = torch.tensor([6, 2, 3, 0, 5, 1, 4])
    parts = [
        initializer.images(
            labels[part], ranks[part], prepared(initializer, Given()), torch.Generator().manual_seed(2)
        )
        for part in order.split(2)
    ]
    assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("initializer", REAL, ids=lambda i: i.name)
def test_too_few_images_is_a_clear_error(initializer):
    with pytest.raises(
        GvbsmError, match=r"'cat' has 5 training images where 6 are asked for.*synthesis\.ipc"
    ):
        initializer.images(torch.full((6,), 2), torch.arange(6), Given(), torch.Generator())


@pytest.mark.parametrize("initializer", [Herding(), KCenter()], ids=lambda i: i.name)
def test_features_of_a_class_are_computed_once_a_call(initializer):
    source = Given()
    initializer.images(torch.tensor([0, 1] * 3), torch.tensor([0, 0, 1, 1, 2, 2]), source, torch.Generator())
    asked = [sorted(indices.tolist()) for indices in source.asked]
    assert asked == [(source.train.labels == label).nonzero().flatten().tolist() for label in (0, 1)]


def test_real_differs_by_seed_and_class_and_is_uniform():
    first = [positions(RealImages(), Given(seed), 0, 1)[0] for seed in range(240)]
    counts = np.bincount(np.searchsorted(sorted(set(first)), first))
    assert len(counts) == 12
    assert ((counts - 20) ** 2 / 20).sum() < 31.3  # χ², 11 degrees of freedom: p = 0.001
    assert len({tuple(positions(RealImages(), Given(seed), 0, 12)) for seed in range(20)}) == 20


def test_noise_is_standard_normal_from_the_generator():
    source = Given()
    labels = torch.arange(4).repeat(250)
    images = Noise().images(labels, labels, source, torch.Generator().manual_seed(7))
    assert images.shape == (1000, 1, 5, 5)
    assert images.mean().item() == pytest.approx(0, abs=0.03)
    assert images.std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(images, Noise().images(labels, labels, source, torch.Generator().manual_seed(7)))
    assert not torch.equal(images, Noise().images(labels, labels, source, torch.Generator().manual_seed(8)))


def herding_by_loops(features: np.ndarray, count: int) -> list[int]:
    target, chosen = features.mean(0), []
    for _ in range(count):
        best, least = -1, np.inf
        for candidate in range(len(features)):
            if candidate not in chosen:
                mean = np.mean([features[i] for i in [*chosen, candidate]], axis=0)
                distance = np.sqrt(((mean - target) ** 2).sum())
                if distance < least - 1e-12:
                    best, least = candidate, distance
        chosen.append(best)
    return chosen


def k_center_by_loops(features: np.ndarray, count: int) -> list[int]:
    distance = lambda a, b: np.sqrt(((a - b) ** 2).sum())  # noqa: E731
    centre = features.mean(0)
    chosen = [min(range(len(features)), key=lambda i: distance(features[i], centre))]
    while len(chosen) < count:
        free = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(free, key=lambda i: min(distance(features[i], features[j]) for j in chosen)))
    return chosen


@pytest.mark.parametrize(
    ("initializer", "by_loops"), [(Herding(), herding_by_loops), (KCenter(), k_center_by_loops)]
)
def test_coresets_equal_their_definition(initializer, by_loops):
    source = Given()
    for label, size in enumerate([12, 7, 5, 1]):
        members = (source.train.labels == label).nonzero().flatten()
        features = source.features(members).double().numpy()
        expected = members[by_loops(features, size)].tolist()
        assert positions(initializer, source, label, size) == expected


@pytest.mark.parametrize("initializer", [Herding(), KCenter()], ids=lambda i: i.name)
def test_identical_features_still_give_distinct_images(initializer):
    source = Given()
    source.projection = torch.zeros(25, 3)
    assert len(set(positions(initializer, source, 0, 12))) == 12


class Scripted(nn.Module):
    """Right or wrong by a table [epoch, image]; an image is known by its first pixel."""

    def __init__(self, right: np.ndarray, truth: torch.Tensor) -> None:
        super().__init__()
        self.table, self.truth, self.seen = right, truth, np.zeros(len(truth), int)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        who = ((images[:, 0, 0, 0] + 0.5) * 255).round().long().tolist()
        logits = torch.zeros(len(who), 4)
        for row, image in enumerate(who):
            right = self.table[self.seen[image], image]
            logits[row, (self.truth[image] + (0 if right else 1)) % 4] = 1
            self.seen[image] += 1
        return logits + self.bias


@pytest.mark.parametrize("batch", [1, 4, 7, 1000])
def test_forgetting_events_are_counted_as_toneva_et_al_define_them(batch):
    source = Given()
    source.train.images[:, 0, 0, 0] = torch.arange(25, dtype=torch.uint8)
    table = np.random.default_rng(0).random((6, 25)) < 0.5
    table[:, 0], table[:, 1], table[:, 2] = False, True, [True, False] * 3
    model = source.model = Scripted(table, source.train.labels)
    events = Forgetting(epochs=6, batch=batch).prepare(source)["events"]
    expected = [
        6 if not column.any() else sum(column[t] and not column[t + 1] for t in range(5))
        for column in table.T
    ]
    assert events.tolist() == expected
    assert events[:3].tolist() == [6, 0, 3]
    assert (model.seen == 6).all()

    model.seen[:] = 0
    for label, size in enumerate([12, 7, 5, 1]):
        taken = positions(Forgetting(epochs=6, batch=batch), source, label, size)
        assert [expected[i] for i in taken] == sorted((expected[i] for i in taken), reverse=True)


def test_forgetting_trains_once_and_is_reproducible():
    source, again = Given(noisy=True), Given(noisy=True)
    options = Forgetting(epochs=4, learning_rate=0.5, batch=8)
    torch.manual_seed(1)
    first = positions(options, source, 0, 12)
    positions(options, source, 1, 7)
    assert source.trained == 1
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert positions(options, again, 0, 12) == first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_forgetting_finds_wrongly_labelled_images():
    source = Given()
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(25)
    images = torch.randint(0, 40, (100, 1, 5, 5), generator=generator)
    images[torch.arange(100), 0, labels] += 200
    wrong = torch.tensor([8, 40, 72])
    labels = labels.clone()
    labels[wrong] = 1
    source.train = TensorSplit(images.to(torch.uint8), labels, ("ant", "bee", "cat", "dog"))
    taken = positions(Forgetting(epochs=10, learning_rate=0.05, batch=20), source, 1, 3)
    assert sorted(taken) == wrong.tolist()


def crop(image: torch.Tensor, box: list[int], size: int) -> torch.Tensor:
    """A box of an image [C, S, S], resized by torchvision."""
    return resized_crop(image, *box, [size, size], antialias=True)


def best_crops(initializer: Mosaic, source: Given, label: int) -> list[tuple[float, int, list[int]]]:
    """RDED's choice for a class in a few lines: (cross-entropy, image, box), the lowest first.

    The boxes that were tried are drawn as the initializer draws them, all else is written again.
    """
    members = [index for index, truth in enumerate(source.train.labels.tolist()) if truth == label]
    order = torch.randperm(
        len(members), generator=torch.Generator().manual_seed(seed_of(source, "class", label))
    )
    pool = [members[place] for place in order.tolist()][: initializer.pool]
    generator = torch.Generator().manual_seed(seed_of(source, "crops", label))
    tried = ResizedCrop(scale=initializer.scale, ratio=(1, 1), flip=0)
    boxes = tried.draw(initializer.crops * len(pool), 5, generator).boxes.int().tolist()
    chosen = []
    for place, index in enumerate(pool):
        image, scored = source.normalize(source.train.images[index]).double(), []
        for box in boxes[place * initializer.crops : (place + 1) * initializer.crops]:
            size = 5 // initializer.factor
            seen = torch.zeros(1, 5, 5).double()
            start = (5 - size) // 2
            seen[:, start : start + size, start : start + size] = crop(image, box, size)
            logits = [member.module.weight.double() @ seen.flatten() for member in source.committee]
            taken = logits[:1] if initializer.committee == "first" else logits
            mean = sum(taken) / len(taken)
            scored.append((float(mean.logsumexp(0) - mean[label]), index, box))
        chosen.append(min(scored))
    return sorted(chosen)


MOSAICS = [
    Mosaic(),
    Mosaic(pool=9, crops=3, scale=(0.3, 1.0), committee="first"),
    Mosaic(crops=1, scale=(1, 1), factor=2),
    Mosaic(factor=2, pick="low"),
    Mosaic(pick="medium"),
]


@pytest.mark.parametrize("initializer", MOSAICS, ids=str)
def test_mosaics_are_made_of_the_crops_that_rded_chooses(initializer):
    source = prepared(initializer, Given())
    for label in (0, 1):
        ranked = best_crops(initializer, source, label)
        scores = source.prepared["scores"][label]
        assert scores[: len(ranked)].tolist() == pytest.approx([score for score, _, _ in ranked], rel=1e-4)
        middle = (len(ranked) - 1) / 2
        if initializer.pick == "low":
            ranked.reverse()
        if initializer.pick == "medium":
            ranked = sorted(ranked, key=lambda each: abs(ranked.index(each) - middle))
        factor = initializer.factor
        count = len(ranked) // factor**2
        made = initializer.images(torch.full((count,), label), torch.arange(count), source, torch.Generator())
        for rank, image in enumerate(made):
            cells = ranked[rank * factor**2 : (rank + 1) * factor**2]
            sides = {1: [5], 2: [3, 2]}[factor]
            starts = {1: [0], 2: [0, 3]}[factor]
            places = [(row, column) for row in range(factor) for column in range(factor)]
            for (_, index, box), (row, column) in zip(cells, places, strict=True):
                real = source.normalize(source.train.images[index])
                size = [sides[row], sides[column]]
                expected = resized_crop(real, *box, size, antialias=True)
                top, left = starts[row], starts[column]
                part = image[:, top : top + size[0], left : left + size[1]]
                torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)


def test_mosaics_of_few_images_are_refused_and_do_not_depend_on_the_batch():
    initializer = Mosaic(factor=2)
    source = prepared(initializer, Given())
    both = initializer.images(torch.tensor([0, 0]), torch.tensor([0, 2]), source, torch.Generator())
    last = initializer.images(torch.tensor([0]), torch.tensor([2]), source, torch.Generator())
    assert torch.equal(both[1:], last)
    with pytest.raises(GvbsmError, match=r"'bee' has a pool of 7 images, too few for 2 of 2×2 crops"):
        initializer.images(torch.tensor([1]), torch.tensor([1]), source, torch.Generator())
    with pytest.raises(GvbsmError, match="factor 6 is more than the 5 pixels"):
        Mosaic(factor=6).prepare(Given())
    with pytest.raises(ValidationError, match="smaller first"):
        Mosaic(scale=(0.5, 1.2))
