"""Synthesis: how the set is split, what a step does, and what goes wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from toys import ToyNet

from benchmarks.textbook import MATCHERS, TextbookStep, densification
from gvbsm.matching.targets import target_name
from gvbsm.recipe.schema import Synthesis
from gvbsm.runtime.seeds import generator_of
from gvbsm.stages.image_sets import image_batches
from gvbsm.synthesis.loop import SynthesisLoop
from gvbsm_registry import GvbsmError
from gvbsm_registry.artifacts import read

PLAIN = [("synthesis.initializer", "real"), ("synthesis.augmentation", "none")]


@settings(max_examples=200, deadline=None)
@given(
    classes=st.integers(1, 30),
    ipc=st.integers(1, 20),
    batch=st.integers(1, 40),
    batching=st.sampled_from(["by_class", "one_class", "across_classes"]),
)
def test_batches_hold_every_image_once_in_the_papers_order(registry, classes, ipc, batch, batching):
    section = Synthesis.model_validate(
        {"ipc": ipc, "batch": batch, "batching": batching}, context={"registry": registry}
    )
    parts = image_batches(classes, section)
    pairs = [pair for labels, ranks in parts for pair in zip(labels, ranks, strict=True)]
    assert sorted(pairs) == [(label, rank) for label in range(classes) for rank in range(ipc)]
    for labels, ranks in parts:
        assert 0 < len(labels) == len(ranks) <= (ipc if batching == "one_class" else batch)
        counts = Counter(labels)
        if batching == "across_classes":  # one image of each of many classes
            assert set(counts.values()) == {1}
            assert len(set(ranks)) == 1
        elif batching == "one_class":
            assert list(counts.values()) == [ipc]
        elif ipc <= batch:  # all images of few classes
            assert set(counts.values()) == {ipc}
        else:
            assert len(counts) == 1
    # No more batches than the order of the loop asks for.
    if batching == "across_classes":
        assert len(parts) == ipc * math.ceil(classes / batch)
    elif batching == "one_class":
        assert len(parts) == classes
    elif ipc <= batch:
        assert len(parts) == math.ceil(classes / (batch // ipc))
    else:
        assert len(parts) == classes * math.ceil(ipc / batch)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def steps_logged(out: Path) -> list[dict]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


def loaded(width: int, path: Path) -> nn.Module:
    model = ToyNet(width=width).build(3, 8, 1)
    with safe_open(path, "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model.double().eval().requires_grad_(False)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """The toy recipe's augmentation on one image after another: padded crop by a pixel, flip."""
    corners = torch.randint(-1, 2, (len(images), 2), generator=generator)
    flips = torch.rand(len(images), generator=generator) < 0.5
    torch.randint(0, 1, (1, 2), generator=generator)  # a roll by nothing is drawn, too
    seen = []
    for image, (top, left), flip in zip(images, corners.tolist(), flips, strict=True):
        crop = nn.functional.pad(image, (1, 1, 1, 1))[:, top + 1 : top + 9, left + 1 : left + 9]
        seen.append(crop.flip(-1) if flip else crop)
    return torch.stack(seen)


def test_three_steps_equal_the_papers_written_out(make_run, double):
    """Noise, augmentation, Eqs. 5, 6, 10, 14, Adam, cosine, clamping, 8 bits: images and every term."""
    wanted = [{"use": "bn"}, *({"use": name, "drop_rate": 0.5} for name in MATCHERS[1:])]
    changes = [("synthesis.batch", 6), ("synthesis.iterations", 3), ("synthesis.matchers", wanted)]
    changes += [("backbones.0.match_weight", 0.5), ("backbones.1.match_weight", 20.0)]
    run = make_run(*changes)
    statistics = [unit.read().tensors for unit in run.statistics()]
    models = [loaded(width, unit.path) for width, unit in zip((6, 8), run.backbones(), strict=True)]
    (unit,) = run.synthesized()

    books = []
    for model, measured, factor in zip(models, statistics, (0.5, 20.0), strict=True):
        convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        targets = {
            matcher.name: {
                site: {s: measured[target_name(matcher, site, s)].double() for s in ("mean", "var")}
                for site in convolutions
            }
            for matcher in run.recipe.synthesis.matchers[1:]
        }
        drop_rate = {"bn": 0.0, "conv_channel": 0.5, "conv_patch": 0.5}
        books.append(
            TextbookStep(
                model, targets=targets, momentum=0.8, drop_rate=drop_rate, weight=0.01 * factor, dd_weight=0
            )
        )
    generator = generator_of(0, "synthesis", 0)
    (mean,), (std,) = run.data.normalization.mean, run.data.normalization.std
    low, high = -mean / std, (1 - mean) / std
    images = torch.randn(6, 1, 8, 8, generator=generator).clamp(low, high)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    first, second = torch.zeros_like(images), torch.zeros_like(images)
    events = steps_logged(run.out)
    assert [(event["step"], event["labels"]["backbone"]) for event in events] == [
        (0, "toy_net"),
        (1, "toy_net-2"),
        (2, "toy_net"),
    ]
    for step in range(3):
        images = images.detach().requires_grad_()
        seen = moved(images, generator)
        sites = ["1", "4", "0", "3"]  # BatchNorms, then convolutions
        uniforms = dict(zip(sites, torch.rand(1, 4, generator=generator)[0].tolist(), strict=True))
        total, terms = books[step % 2].loss(seen, labels, uniforms)
        terms["dd"] = densification(images, labels)
        total = total + terms["dd"]
        rate = 0.05 * (1 + math.cos(math.pi * step / 3)) / 2
        logged = events[step]["values"]
        assert set(logged) == {"cross_entropy", *MATCHERS, "dd", "total", "learning_rate"}
        for name, term in {**terms, "total": total, "learning_rate": torch.tensor(rate)}.items():
            assert logged[name] == pytest.approx(float(term.detach()), rel=1e-9, abs=1e-12), (step, name)
        (grad,) = torch.autograd.grad(total, images)
        first, second = 0.5 * first + 0.5 * grad, 0.9 * second + 0.1 * grad**2
        change = (first / (1 - 0.5 ** (step + 1))) / ((second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
        images = (images.detach() - rate * change).clamp(low, high)
    expected = ((images * std + mean) * 255).round()
    artifact = unit.read()
    assert torch.equal(artifact.tensors["images"].double(), expected)
    assert torch.equal(artifact.tensors["labels"], labels)
    assert artifact.tensors["ranks"].tolist() == [0, 1, 0, 1, 0, 1]


def distilled(run) -> Tensor:
    return read(run.out / "distilled" / "images.safetensors", "distilled").tensors["images"]


def made(make_run, *changes, out="out") -> Tensor:
    return distilled(make_run(*changes, out=out).until("synthesis"))


def test_a_term_that_is_left_out_changes_the_images(make_run):
    names = ["bn", "conv_channel", "conv_patch"]
    # At τ = 4 a start as lopsided as two noisy copies of one picture pulls by e⁻¹⁵, which no 8 bits show.
    changes = [*PLAIN, ("synthesis.regularizers", [{"use": "dd", "temperature": 50.0}])]
    changes += [("synthesis.matchers", [{"use": name, "weight": 1.0} for name in names])]
    found = [made(make_run, *changes)]
    for number, name in enumerate(names):
        rest = [{"use": other, "weight": 1.0} for other in names if other != name]
        found.append(made(make_run, *changes, ("synthesis.matchers", rest), out=str(number)))
    found.append(made(make_run, *changes, ("synthesis.regularizers", []), out="dd"))
    assert len({tuple(images.flatten().tolist()) for images in found}) == 5
    logged = steps_logged(Path(make_run(out="1").out))
    assert set(logged[0]["values"]) == {"cross_entropy", "bn", "conv_patch", "dd", "total", "learning_rate"}


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(make_run):
    one, two, three = (
        made(make_run, ("seed", seed), out=out) for seed, out in ((3, "a"), (3, "b"), (4, "c"))
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_batch_does_not_depend_on_which_others_ran_before(make_run):
    forward, backward = make_run(out="a"), make_run(out="b")
    planned = forward.synthesized()
    backward.statistics()
    reverse = backward.execute(backward.plan.image_batches[::-1])
    assert len(planned) == 2
    for one, other in zip(planned, reverse[::-1], strict=True):
        assert torch.equal(one.read().tensors["images"], other.read().tensors["images"])


def test_images_stay_valid_pixels_after_every_step(make_run, monkeypatch):
    run = make_run(("synthesis.learning_rate", 5.0), ("synthesis.regularizers", ["l2"]))
    low, high = run.data.normalization.pixel_range("cpu")
    seen = []
    original = SynthesisLoop._take

    def step(self, *arguments):
        values = original(self, *arguments)
        seen.append(self.learnt.leaves["pixels"].detach().clone())
        return values

    monkeypatch.setattr(SynthesisLoop, "_take", step)
    run.synthesized()
    assert len(seen) == 12
    for images in seen:
        assert bool((images >= low).all())
        assert bool((images <= high).all())
    assert bool((seen[0] == low).any())  # a learning rate this large reaches the ends


def test_backbones_in_turn_or_drawn(make_run):
    orders = {}
    for order in ("cycle", "random"):
        changes = [
            ("synthesis.population", {"use": "pretrained", "order": order}),
            ("synthesis.iterations", 40),
            ("synthesis.batch", 6),
        ]
        run = make_run(*changes, out=order)
        run.synthesized()
        orders[order] = [event["labels"]["backbone"] for event in steps_logged(run.out)]
    assert orders["cycle"][:4] == ["toy_net", "toy_net-2"] * 2
    counts = Counter(orders["random"])
    assert set(counts) == {"toy_net", "toy_net-2"}
    assert min(counts.values()) > 8
    assert any(one == two for one, two in zip(orders["random"], orders["random"][1:], strict=False))


def test_log_every_counts_each_backbones_steps(make_run):
    changes = [("synthesis.log_every", 3), ("synthesis.iterations", 14), ("synthesis.batch", 6)]
    run = make_run(*changes)
    run.synthesized()
    assert [event["step"] for event in steps_logged(run.out)] == [0, 1, 6, 7, 12, 13]


def test_without_iterations_the_initializers_images_are_the_result(make_run):
    run = make_run(("synthesis.iterations", 0), ("synthesis.initializer", "real"))
    found = distilled(run.until("synthesis"))
    train = run.data.train
    for label in range(3):
        mine = train.images[train.labels == label]
        for image in found[2 * label : 2 * label + 2]:
            assert any(torch.equal(image, real) for real in mine)
    assert run.statistics() == []
    assert len({tuple(image.flatten().tolist()) for image in found}) == 6


@pytest.mark.parametrize(
    ("where", "message"), [("loss", "loss is nan"), ("gradient", "gradient is not finite")]
)
def test_a_step_that_is_not_finite_keeps_the_last_good_images(make_run, where, message):
    faulty = [("synthesis.regularizers", [{"use": "toy_fault", "at": 3, "where": where}]), *PLAIN]
    run = make_run(*faulty, ("synthesis.batch", 6), ("synthesis.schedule", "constant"))
    with pytest.raises(
        GvbsmError, match=rf"step 3 of 6.*'toy_net-2'.*{message}.*toy_fault.*kept in"
    ) as caught:
        run.synthesized()
    assert "\n" not in str(caught.value)
    path = Path(str(caught.value).rsplit("kept in ", 1)[1])
    kept = read(path, "images").tensors
    # They are those of three steps without the fault.
    good = [
        ("synthesis.regularizers", []),
        *PLAIN,
        ("synthesis.batch", 6),
        ("synthesis.schedule", "constant"),
    ]
    (unit,) = make_run(*good, ("synthesis.iterations", 3), out="good").synthesized()
    assert torch.equal(kept["images"], unit.read().tensors["images"])
    assert kept["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    (planned,) = run.plan.image_batches
    assert not planned.done()


def test_odd_sizes_and_one_image_a_class(make_run):
    changes = [("data.image_size", 7), ("data.channels", 3), ("synthesis.ipc", 1), ("synthesis.batch", 2)]
    found = made(make_run, *changes)
    assert found.shape == (3, 3, 7, 7)


def test_images_are_sorted_by_class_and_rank_whatever_the_loop(make_run):
    changes = [
        ("synthesis.batching", "across_classes"),
        ("synthesis.iterations", 0),
        ("synthesis.initializer", "real"),
    ]
    original = make_run(*changes, out="a").until("synthesis")
    reorder = make_run(*changes[1:], out="b").until("synthesis")
    assert torch.equal(distilled(original), distilled(reorder))
