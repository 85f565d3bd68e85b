"""Real images beside a step's own, and networks that nobody has trained."""

from __future__ import annotations

import pytest
import torch

from gvbsm.stages.synthesize import optimise_together
from gvbsm.synthesis.loop import SynthesisLoop
from gvbsm.synthesis.real import RealImages
from gvbsm.synthesis.step import BatchStep, JointStep
from gvbsm_plugins.augmentations import Dsa
from gvbsm_registry import GvbsmError, Network, identity_view
from gvbsm_registry.testing import samples

FRESH = [
    ("synthesis.population", {"use": "fresh", "first": 1}),
    ("synthesis.terms", [{"use": "mean_features", "real": 5}]),
    ("synthesis.matchers", []),
    ("synthesis.regularizers", []),
    ("synthesis.initializer", "real"),
    ("synthesis.augmentation", {"use": "dsa", "per_image": False}),
    ("synthesis.batching", "one_class"),
    ("synthesis.schedule", "constant"),
    ("synthesis.optimizer", {"use": "sgd", "momentum": 0.0}),
    ("synthesis.learning_rate", 0.01),
    ("synthesis.iterations", 2),
    ("evaluation.soft", False),
]
SOURCE = samples.SampleSource()  # 3 classes of 5 images
LABELS = torch.tensor([2, 2, 0])


def reals(seed: int = 0) -> RealImages:
    return RealImages(SOURCE, Dsa(per_image=False), [torch.Generator().manual_seed(seed)])


def shown(images: torch.Tensor) -> torch.Tensor:
    """The places in the training split of images that are seen as they are."""
    train = SOURCE.normalize(SOURCE.train.images)
    return torch.stack([(train == image).flatten(1).all(1).nonzero().squeeze() for image in images])


def test_real_images_are_of_the_classes_and_drawn_anew() -> None:
    plain = identity_view(3, 8)
    several = []
    drawn = reals()
    for _ in range(30):
        (seed,) = drawn.seeds()
        images, truth = drawn.draw(seed, LABELS, 2, plain, side=8, progress=0.0)
        places = shown(images)
        assert truth.tolist() == [0, 0, 2, 2]
        assert torch.equal(SOURCE.train.labels[places], truth)
        assert len(set(places.tolist())) == 4
        several.append(tuple(sorted(places.tolist()[:2])))
    assert len(set(several)) > 6  # of the 10 pairs
    images, truth = drawn.draw(0, LABELS, 99, plain, side=8, progress=0.0)
    assert truth.tolist() == [0] * 5 + [2] * 5
    assert sorted(shown(images)[:5].tolist()) == [0, 3, 6, 9, 12]


def test_the_same_view_is_that_of_the_classs_images_in_turn() -> None:
    views = Dsa().draw(3, 8, torch.Generator().manual_seed(3))
    plain, truth = reals().draw(5, LABELS, 3, identity_view(3, 8), side=8, progress=0.0)
    seen, _ = reals().draw(5, LABELS, 3, views, side=8, progress=0.0)
    assert truth.tolist() == [0] * 3 + [2] * 3
    expected = views.select(torch.tensor([2, 2, 2, 0, 1, 0])).apply(plain)
    torch.testing.assert_close(seen, expected)
    other, _ = reals().draw(5, LABELS, 3, None, side=8, progress=0.0)
    assert not torch.equal(other, seen)
    small, _ = reals().draw(5, LABELS, 3, None, side=4, progress=0.0)
    assert small.shape == (6, 3, 4, 4)


def test_a_class_without_images_is_named() -> None:
    source = samples.SampleSource()
    source.classes = 4
    source.train.classes = (*source.train.classes, "unicorn")
    with pytest.raises(GvbsmError, match="class 'unicorn' has no training image"):
        RealImages(source, Dsa(), []).draw(0, torch.tensor([3]), 2, None, side=8, progress=0.0)


def steps_of(run, monkeypatch, units=None) -> list[tuple[JointStep, torch.Tensor]]:
    """Synthesize; return the steps that were taken, each with the images before it."""
    taken = []
    original = SynthesisLoop._take

    def keeping(self, joint):
        taken.append((joint, joint.images.detach().clone()))
        return original(self, joint)

    monkeypatch.setattr(SynthesisLoop, "_take", keeping)
    optimise_together(run.context, units or run.plan.image_batches[:1])
    return taken


def test_a_step_is_distribution_matching_written_out(make_run, monkeypatch) -> None:
    """Per class: one random network, one view for all, the squared distance of the mean features."""
    run = make_run(*FRESH)
    (joint, before), (later, after) = steps_of(run, monkeypatch)
    step, (network,) = BatchStep(joint, 0), joint.networks
    real, truth = step.real(5, same_view=True)
    assert truth.tolist() == [0] * 5
    assert step.real(5, same_view=True)[0] is real
    assert not torch.equal(BatchStep(later, 0).real(5, same_view=True)[0], real)
    assert torch.equal(joint.views[0].boxes[0], joint.views[0].boxes[1])
    images = before.clone().requires_grad_(True)
    body = network.module[:-1]
    seen = joint.views[0].apply(images)
    loss = (body(real).mean(0) - body(seen).mean(0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, images)
    low, high = run.data.normalization.pixel_range("cpu")
    expected = (before - 0.01 * gradient).clamp(low, high)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected, before)
    first, second = (each.networks[0].module[0].weight for each in (joint, later))
    assert not torch.equal(first, second)


def test_batches_together_come_out_as_alone(make_run, monkeypatch) -> None:
    """The network of a step is the same for all classes; views and real images are each class's own."""
    run = make_run(*FRESH)
    units = run.plan.image_batches
    together = [tensors["images"] for tensors, _ in optimise_together(run.context, units)]
    alone = [optimise_together(run.context, [unit])[0][0]["images"] for unit in units]
    assert len(units) == 3
    for one, other in zip(together, alone, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1
    (joint, _), *_ = steps_of(run, monkeypatch, units)
    assert [BatchStep(joint, batch).real(2)[1].tolist() for batch in range(3)] == [[0, 0], [1, 1], [2, 2]]


def test_what_others_ask_for_changes_nothing(make_run, monkeypatch) -> None:
    run = make_run(*FRESH)
    joint = steps_of(run, monkeypatch)[0][0]
    one, other = BatchStep(joint, 0), BatchStep(joint, 0)
    other.real(2)
    other.real(5)
    assert torch.equal(one.real(5, same_view=True)[0], other.real(5, same_view=True)[0])


def test_nothing_is_pretrained_for_untrained_networks(make_run, tmp_path) -> None:
    run = make_run(*FRESH, store=tmp_path / "store")
    for stage in ("pretrain", "measure", "relabel"):
        assert run.plan.waves(stage) == []
    run.until("synthesis")
    assert not any(unit.path.exists() for unit in run.plan.backbones)
    other = make_run(*FRESH, ("backbones", [{"use": "toy_net", "width": 7}]))
    assert {unit.key for unit in run.plan.image_batches}.isdisjoint(
        unit.key for unit in other.plan.image_batches
    )
    soft = make_run(*FRESH, ("evaluation.soft", True))
    assert [unit.name for unit in soft.plan.networks] == ["toy_net", "toy_net-2"]
    herding = make_run(*FRESH, ("synthesis.initializer", "herding")).until("synthesis")
    assert [unit.name for unit in herding.plan.networks] == ["toy_net", "toy_net-2"]


def test_untrained_networks_have_nothing_to_match(make_run) -> None:
    with pytest.raises(GvbsmError, match=r"but population 'fresh' takes none; set synthesis.matchers = \[\]"):
        make_run(*FRESH, ("synthesis.matchers", ["bn"]))
    make_run(*FRESH, ("synthesis.matchers", ["bn"]), ("synthesis.iterations", 0))


def test_a_population_that_hides_that_it_needs_training_is_told_so(make_run, monkeypatch, registry) -> None:
    from gvbsm_plugins.populations import Pretrained

    monkeypatch.setattr(Pretrained, "keeps", "none")
    run = make_run(*FRESH, ("synthesis.population", "pretrained"))
    with pytest.raises(
        GvbsmError, match="asks for the pretrained network 'toy_net', but says keeps = 'none'"
    ):
        optimise_together(run.context, run.plan.image_batches[:1])


def test_matchers_leave_out_an_untrained_network(make_run, monkeypatch) -> None:
    """A population may take networks of both sorts."""
    run = make_run(("synthesis.batch", 6), ("synthesis.iterations", 1))
    run.statistics()
    joint = steps_of(run, monkeypatch)[0][0]
    drawn = joint._stock.fresh(1, 7)
    before = torch.get_rng_state()
    again = joint._stock.fresh(1, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn.module[0].weight, again.module[0].weight)
    assert not torch.equal(drawn.module[0].weight, joint._stock.fresh(1, 8).module[0].weight)
    matched, factor = joint._stock.matched(drawn)
    assert (matched.sites, matched.names, factor) == ([], set(), 1.0)
    with pytest.raises(GvbsmError, match=r"stock.pretrained or stock.fresh"):
        joint._stock.matched(Network("other", torch.nn.Identity()))
