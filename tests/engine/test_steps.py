"""A step: several networks, what is shared, what a term is shown, and what is learnt."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from gvbsm.stages.pretrain import load_backbone
from gvbsm.synthesis.loop import SynthesisLoop
from gvbsm.synthesis.step import BatchStep, JointStep
from gvbsm_registry import GvbsmError, Matcher
from gvbsm_registry.artifacts import read

BARE = [
    ("synthesis.matchers", []),
    ("synthesis.regularizers", []),
    ("synthesis.initializer", "real"),
    ("synthesis.augmentation", "none"),
    ("synthesis.batch", 6),
    ("synthesis.schedule", "constant"),
    ("synthesis.optimizer", {"use": "sgd", "momentum": 0.0, "weight_decay": 0.0}),
    ("synthesis.learning_rate", 0.5),
]


def loop_of(run, monkeypatch) -> SynthesisLoop:
    """Synthesize; return the loop as it ended."""
    loops = []
    original = SynthesisLoop.run

    def keeping(self, *arguments):
        loops.append(self)
        original(self, *arguments)

    monkeypatch.setattr(SynthesisLoop, "run", keeping)
    run.synthesized()
    return loops[0]


def test_networks_of_a_step_add_up(make_run, monkeypatch) -> None:
    """One step of gradient descent on Σ w_i · CE_i, written out."""
    population = {"use": "pretrained", "per_step": 2, "by_accuracy": 20.0}
    run = make_run(*BARE, ("synthesis.population", population), ("synthesis.iterations", 1))
    loop = loop_of(run, monkeypatch)
    modules = [load_backbone(run.context, unit) for unit in run.plan.backbones]
    accuracies = torch.tensor([unit.read().meta["top1"] for unit in run.plan.backbones])
    weights = (100 * accuracies / 20.0).softmax(0)
    start = loop.stock.images.clone().requires_grad_(True)
    labels = loop.labels
    loss = sum(w * cross_entropy(m(start), labels) for w, m in zip(weights, modules, strict=True))
    (gradient,) = torch.autograd.grad(loss, start)
    low, high = run.data.normalization.pixel_range("cpu")
    expected = (start.detach() - 0.5 * gradient).clamp(low, high)
    torch.testing.assert_close(loop.learnt.now(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected, start)


def steps_of(run, monkeypatch) -> list[JointStep]:
    """Synthesize; return the steps that were taken."""
    taken = []
    original = SynthesisLoop._take

    def keeping(self, joint):
        taken.append(joint)
        return original(self, joint)

    monkeypatch.setattr(SynthesisLoop, "_take", keeping)
    run.synthesized()
    return taken


def test_what_a_step_shows_is_computed_once(make_run, monkeypatch) -> None:
    run = make_run(("synthesis.batch", 6), ("synthesis.iterations", 2))
    joint = steps_of(run, monkeypatch)[0]
    step, (network,) = BatchStep(joint, 0), joint.networks
    assert step.seen is step.seen
    assert torch.equal(step.logits(network), joint.logits(network))
    calls = []
    handle = network.module.register_forward_pre_hook(lambda *_: calls.append(1))
    features = step.features(network)
    assert step.inputs(network, ["7"])["7"] is not None
    assert torch.equal(step.features(network), features)
    handle.remove()
    assert len(calls) == 1
    head = network.module[-1]
    torch.testing.assert_close(head(features), step.logits(network), rtol=1e-4, atol=1e-5)


def test_batches_of_one_step_are_shown_their_own_part(make_run, monkeypatch) -> None:
    run = make_run(("synthesis.batch", 2), ("synthesis.iterations", 1), ("synthesis.batches_per_step", 3))
    from gvbsm.stages.synthesize import optimise_together

    run.statistics()
    taken = []
    original = SynthesisLoop._take
    monkeypatch.setattr(
        SynthesisLoop,
        "_take",
        lambda self, joint: (taken.append((joint, joint.images.clone())), original(self, joint))[1],
    )
    optimise_together(run.context, run.plan.image_batches)
    ((joint, images),) = taken
    parts = [BatchStep(joint, batch) for batch in range(3)]
    assert torch.equal(torch.cat([part.images for part in parts]), joint.images)
    assert torch.equal(torch.cat([part.seen for part in parts]), joint.seen)
    assert torch.cat([part.labels for part in parts]).tolist() == [0, 0, 1, 1, 2, 2]
    for part, own in zip(parts, images.split(2), strict=True):
        torch.testing.assert_close(part.view.apply(own), part.seen)


def test_a_matcher_without_a_site_is_named(make_run, monkeypatch, registry) -> None:
    run = make_run(("synthesis.batch", 6), ("synthesis.iterations", 1))
    joint = steps_of(run, monkeypatch)[0]
    other = registry.create(Matcher, {"use": "conv_patch", "patch_size": 7})
    with pytest.raises(GvbsmError, match=r"matcher 'conv_patch' has no site in toy_net"):
        BatchStep(joint, 0).matched(other)


def test_what_is_not_separable_is_one_batch(make_run, monkeypatch, registry) -> None:
    from gvbsm_plugins.terms import CrossEntropy

    monkeypatch.setattr(CrossEntropy, "separable", False)
    run = make_run(("synthesis.batch", 2), ("synthesis.batching", "across_classes"))
    (unit,) = run.plan.image_batches
    assert unit.options["labels"] == [0, 0, 1, 1, 2, 2]


def test_images_learnt_at_other_sizes_are_kept_at_their_own(make_run) -> None:
    """With networks that take any size; the toys do not."""
    callbacks = [{"use": "resolutions", "every": 2, "sizes": [6, 10]}]
    backbones = [{"use": "timm/test_resnet"}]
    run = make_run(
        ("backbones", backbones),
        ("data.channels", 3),
        ("pretrain.epochs", 1),
        ("synthesis.matchers", ["bn"]),
        ("synthesis.callbacks", callbacks),
        ("synthesis.batch", 6),
    )
    (unit,) = run.synthesized()
    images = read(unit.path).tensors["images"]
    assert images.shape == (6, 3, 8, 8)
    assert images.float().std() > 1


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (
            ("terms", [{"use": "toy_wrong", "what": "shape"}]),
            "term 'toy_wrong' of .*: loss returned ",
        ),
        (
            ("terms", [{"use": "toy_wrong", "what": "raise"}]),
            "term 'toy_wrong' of .*: loss raised ",
        ),
        (("population", "toy_nobody"), "population 'toy_nobody' of .*: draw returned "),
        (("parameterization", "toy_flat"), "parameterization 'toy_flat' of .*: encode returned "),
        (("callbacks", ["toy_late"]), "callback 'toy_late' of .*: after raised ZeroDivisionError: "),
    ],
)
def test_what_fails_is_named_with_what_the_contract_asks(make_run, components, message: str) -> None:
    name, value = components
    run = make_run((f"synthesis.{name}", value), ("synthesis.batch", 6))
    run.statistics()
    with pytest.raises(GvbsmError, match=rf"^{message}.*; the contract asks for ") as caught:
        run.synthesized()
    assert "\n" not in str(caught.value)


def test_a_matcher_that_changes_nothing_is_told(make_run, registry) -> None:
    convnet = {"use": "convnet", "width": 4, "depth": 1}  # without BatchNorm
    run = make_run(
        ("backbones", [convnet, {"use": "toy_net"}]),
        ("synthesis.matchers", ["bn"]),
        ("synthesis.population", {"use": "pretrained", "first": 1}),
        ("synthesis.iterations", 1),
    )
    run.statistics()
    with pytest.warns(UserWarning, match=r"^matcher 'bn' has no site in any network .* takes \(convnet\)"):
        run.synthesized()


def test_without_a_term_there_is_nothing_to_optimise(make_run) -> None:
    run = make_run(*BARE[:3], ("synthesis.terms", []), ("synthesis.batch", 6))
    run.statistics()
    with pytest.raises(GvbsmError, match=r"^no term of \[synthesis\] depends on the images"):
        run.synthesized()
