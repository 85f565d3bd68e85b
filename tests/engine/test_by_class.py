"""Matching by class: the term and what it is measured against, the obvious way and in float64."""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import MakeRun
from test_terms import MATCHERS, Net, engine_terms, matchers, named, net, randn
from torch import Tensor

from benchmarks.textbook import Targets, TextbookStep, channel_moments, measure, patch_moments
from gvbsm.matching.activations import GroupedActivation
from gvbsm.matching.asking import measured_sites
from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.frozen import freeze
from gvbsm.matching.targets import target_name
from gvbsm.matching.terms import Matching
from gvbsm.runtime.seeds import generator_of
from gvbsm.stages.measure import batches_of_one_class
from gvbsm_registry import GvbsmError, Matcher, TensorSplit

CLASSES = 4


def batch_norm_inputs(model: Net, images: Tensor) -> dict[str, dict[str, Tensor]]:
    stem = model.stem(images)
    inner = model.main(model.norm(stem).relu())
    return {"norm": channel_moments(stem), "inner": channel_moments(inner)}


def targets_of_classes(model: Net, channels: int, side: int) -> list[Targets]:
    """For every class: the statistics of some images of its own, of BatchNorms' inputs too."""
    found = []
    for label in range(CLASSES):
        images = (1 + label) * randn(5, channels, side, side, seed=50 + label)
        found.append({**measure(model, [images]), "bn": batch_norm_inputs(model, images)})
    return found


def named_by_class(wanted: list[Matcher], by_class: list[Targets]) -> dict[str, Tensor]:
    return {
        target_name(matcher, site, statistic, by_class=True): torch.stack(
            [targets[matcher.name][site][statistic] for targets in by_class]
        )
        for matcher in wanted
        for site, moments in by_class[0][matcher.name].items()
        for statistic in moments
    }


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("start", ["zero", "first"])
@pytest.mark.parametrize("share", [0.5, 1.0, {"bn": 0.3, "conv_channel": 0.0, "conv_patch": 1.0}])
@pytest.mark.parametrize(
    ("batches", "each"),
    [([[0, 1, 3]], 2), ([[2, 0], [1, 3]], 3), ([[3, 1, 2], [0, 1, 2]], 1), ([[1], [2]], 2)],
)
def test_a_share_of_every_term_is_the_mean_over_the_classes(registry, batches, each, share, start, fused):
    """(1 − β) · the term of the image batch + β · the mean of the terms of its classes, each by itself."""
    channels, side, groups, parts = 2, 9, len(batches), len(batches[0])
    model = net(channels)
    options: dict[str, Any] = {
        "momentum": {"bn": 0.8, "conv_channel": 0.4, "conv_patch": 0.0},
        "drop_rate": {"bn": 0.0, "conv_channel": 0.5, "conv_patch": 0.3},
        "first_site_weight": 3.0,
        "weight": {"bn": 0.01, "conv_channel": 0.3, "conv_patch": 2.0},
    }
    wanted = matchers(registry, **options, by_class=share)
    whole = measure(model, [randn(6, channels, side, side, seed=s) for s in (90, 91)])
    by_class = targets_of_classes(model, channels, side)
    measured = named(wanted, whole) | named_by_class(wanted, by_class)
    labels = torch.tensor(batches).repeat_interleave(each, 1).flatten()
    matching = Matching(model, wanted, measured, groups, start, labels=labels)

    def book(targets: Targets) -> TextbookStep:
        return TextbookStep(model, targets=targets, start=start, dd_weight=0, **options)

    books = [(book(whole), [book(by_class[label]) for label in batch]) for batch in batches]
    draws = torch.Generator().manual_seed(17)
    for step in range(4):
        images = randn(len(labels), channels, side, side, seed=step).requires_grad_()
        uniforms = torch.rand(groups, len(matching.sites), generator=draws, dtype=torch.float64)
        ours = engine_terms(model, matching, images, uniforms, fused)
        theirs = dict.fromkeys(MATCHERS, (images * 0).sum())
        for (of_batch, of_classes), lot, uniform in zip(books, images.chunk(groups), uniforms, strict=True):
            drawn = dict(zip(matching.sites, uniform.tolist(), strict=True))

            def terms(one: TextbookStep, seen: Tensor, drawn: dict[str, float] = drawn) -> dict[str, Tensor]:
                return one.loss(seen, torch.zeros(len(seen), dtype=torch.long), drawn)[1]

            mixed = terms(of_batch, lot)
            classes = [terms(one, seen) for one, seen in zip(of_classes, lot.chunk(parts), strict=True)]
            for matcher in wanted:
                name, beta = matcher.name, matcher.by_class
                mean = torch.stack([each[name] for each in classes]).mean()
                theirs[name] = theirs[name] + (1 - beta) * mixed[name] + beta * mean
        assert list(ours) == list(MATCHERS)
        for name in MATCHERS:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-11, atol=1e-11)
            (grad,) = torch.autograd.grad(ours[name] + (images * 0).sum(), images, retain_graph=True)
            (right,) = torch.autograd.grad(theirs[name], images, retain_graph=True)
            torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("last", [False, True])
def test_moments_of_parts_and_of_batches_keep_their_precision(last):
    x = 1000 + randn(12, 3, 7, 5)
    single = x.float()
    single = single.to(memory_format=torch.channels_last) if last else single
    seen = GroupedActivation(single, 2, parts=3)
    lots = [(seen.group(index), lot) for index, lot in enumerate(x.chunk(2))]
    lots += [(seen.part(index), lot) for index, lot in enumerate(x.chunk(6))]
    for activation, lot in lots:
        assert torch.equal(activation.tensor, lot.float())
        wanted = [*channel_moments(lot).values(), *patch_moments(lot, 4).values()]
        found = [*activation.channel_moments(), *activation.patch_moments(4)]
        for got, right in zip(found, wanted, strict=True):
            assert float(((got.double() - right) / right).abs().amax()) < 1e-3


class Peak(Matcher):
    """A third party's, that looks at the activation itself: a scalar and a matrix."""

    name = "peak"

    def sites(self, model):
        return ["last"]

    def statistics(self, activation):
        flat = activation.tensor.transpose(0, 1).flatten(1)
        return {"peak": activation.tensor.amax(), "gram": flat @ flat.T / flat.shape[1]}


def test_a_third_partys_matcher_sees_a_class_at_a_time():
    model, matcher, images = (
        net(),
        Peak(weight=1, momentum=0, first_site_weight=1, by_class=0.25),
        randn(6, 2, 7, 7),
    )
    seen = model.inner(model.main(model.norm(model.stem(images)).relu())).relu()
    zero = {"peak": torch.zeros((), dtype=torch.float64), "gram": torch.zeros(6, 6, dtype=torch.float64)}
    targets = {name: torch.stack([value + 1, value + 2, value + 3]) for name, value in zero.items()}
    measured = {target_name(matcher, "last", name): value for name, value in zero.items()}
    measured |= {target_name(matcher, "last", name, True): value for name, value in targets.items()}
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    matching = Matching(model, [matcher], measured, labels=labels)
    found = engine_terms(model, matching, images, torch.ones(1, 1))["peak"]

    def distance(lot: Tensor, target: float) -> Tensor:
        gram = torch.einsum("bihw,bjhw->ij", lot, lot) / lot[:, 0].numel()
        return (lot.max() - target).abs() + (gram - target).norm()

    expected = 0.75 * distance(seen, 0) + 0.25 * (distance(seen[:3], 1) + distance(seen[3:], 3)) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (None, "label"),
        ([0, 1, 0, 1], "0, 1, 0, 1"),
        ([0, 0, 0, 1], "0, 0, 0, 1"),
        ([0, 0, 1, 2], "0, 0, 1, 2"),
        ([0, 0, 0], "0, 0, 0"),
    ],
)
def test_batches_of_other_classes_are_refused_in_one_line(registry, labels, told):
    groups = 2 if labels == [0, 0, 0] else 1
    known = None if labels is None else torch.tensor(labels)
    with pytest.raises(GvbsmError, match=f"by class.*{told}.*by_class = 0"):
        Matching(net(), [registry.create(Matcher, {"use": "bn", "by_class": 0.5})], {}, groups, labels=known)


def test_batches_of_different_numbers_of_classes_are_refused(registry):
    matcher = registry.create(Matcher, {"use": "bn", "by_class": 0.5})
    with pytest.raises(GvbsmError, match="equally often"):
        Matching(net(), [matcher], {}, 2, labels=torch.tensor([0, 0, 1, 2]))


def test_what_is_not_measured_by_class_names_the_stage_or_the_class(registry):
    model = net()
    matcher = registry.create(Matcher, {"use": "bn", "by_class": 1.0})
    with pytest.raises(GvbsmError, match="'bn' has no targets measured by class for site 'norm'; run"):
        Matching(model, [matcher], {}, labels=torch.tensor([0, 0]))
    by_class = named_by_class([matcher], targets_of_classes(model, 2, 7))
    for value in by_class.values():
        value[2] = torch.nan
    Matching(model, [matcher], by_class, labels=torch.tensor([0, 1]))
    with pytest.raises(GvbsmError, match=r"class 2 at site 'norm'.*no training image"):
        Matching(model, [matcher], by_class, labels=torch.tensor([1, 2]))


def test_fewer_images_of_each_class_are_matched_as_well(registry):
    """As where images join later: the same classes, equally many of each."""
    model, labels = net(), torch.tensor([0, 0, 0, 3, 3, 3])
    wanted = matchers(registry, by_class=0.5)
    measured = named(wanted, measure(model, [randn(6, 2, 7, 7)]))
    measured |= named_by_class(wanted, targets_of_classes(model, 2, 7))
    images, some = randn(6, 2, 7, 7, seed=5), torch.tensor([0, 1, 3, 5])
    matched = MatchedBackbone(model, Matching(model, wanted, measured, labels=labels))
    keep = torch.ones(1, len(matched.sites))
    matched.observe(images, keep, labels)
    found = MatchedBackbone(model, Matching(model, wanted, measured, labels=labels))
    alone = MatchedBackbone(model, Matching(model, wanted, measured, labels=labels[some]))
    pair = [one.observe(images[some], keep, labels[some])[1] for one in (found, alone)]
    assert pair[0] == pair[1]
    for wrong in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2])):
        with pytest.raises(GvbsmError, match=r"matching by class asks for"):
            matched.observe(images[wrong], keep, labels[wrong])


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0, 1], [2, 3]]])
def test_compiled_equals_eager(registry, batches):
    model, each = freeze(net().float()), 2
    wanted = matchers(registry, by_class=0.5, momentum=0.5)
    measured = named(wanted, measure(net(), [randn(6, 2, 9, 9)]))
    measured |= named_by_class(wanted, targets_of_classes(net(), 2, 9))
    labels = torch.tensor(batches).repeat_interleave(each, 1).flatten()
    found: dict[bool, list[Any]] = {}
    for compiled in (False, True):
        matching = Matching(model, wanted, measured, len(batches), labels=labels)
        observer = MatchedBackbone(model, matching, compiled)
        for step in range(3):
            images = randn(len(labels), 2, 9, 9, seed=step).float().requires_grad_()
            _, terms = observer.observe(images, torch.ones(len(batches), len(observer.sites)))
            (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), images)
            found.setdefault(compiled, []).append((torch.stack(list(terms.values())).detach(), gradient))
    for (terms, gradient), (fast_terms, fast_gradient) in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(fast_terms, terms, rtol=1e-4, atol=0)
        torch.testing.assert_close(fast_gradient, gradient, rtol=1e-3, atol=1e-5)


def by_class(share: float, *names: str) -> tuple[str, Any]:
    return ("synthesis.matchers", [{"use": name, "by_class": share} for name in names])


@pytest.mark.parametrize("batch", [10, 3])
def test_classes_are_measured_as_a_loop_over_each_would(make_run: MakeRun, batch: int) -> None:
    run = make_run(by_class(0.5, *MATCHERS), ("measure.batch", batch))
    (unit, _), plain = run.statistics(), make_run(("measure.batch", batch)).statistics()[0].read().tensors
    artifact, train = unit.read(), run.data.train
    assert artifact.meta["images"] == len(train) == 24
    model = run.context.build(run.recipe.backbones[0])
    model.load_state_dict(unit.input("backbone").read().tensors)
    model.double()
    batches = batches_of_one_class(train, batch, generator_of("measure", run.recipe.seed, "by class"))
    assert torch.cat(batches).sort().values.equal(torch.arange(24))
    expected: dict[str, Tensor] = {}
    for label in range(3):
        parts = [part for part in batches if train.labels[part[0]] == label]
        assert all((train.labels[part] == label).all() for part in parts)
        assert [len(part) for part in parts] == ([8] if batch == 10 else [3, 3, 2])
        totals: dict[str, Tensor] = {}
        for part in parts:
            images = run.context.normalize(train.read(part)).double()
            norms = {"1": channel_moments(model[0](images)), "4": channel_moments(model[:4](images))}
            for matcher in run.recipe.synthesis.matchers:
                sites = {**measure(model, [images]), "bn": norms}[matcher.name]
                for site, moments in sites.items():
                    for name, value in moments.items():
                        full = target_name(matcher, site, name, by_class=True)
                        totals[full] = totals.get(full, 0) + len(part) / 8 * value
        for name, value in totals.items():
            expected[name] = torch.cat([expected.get(name, value[None][:0]), value[None]])
    assert artifact.tensors.keys() == expected.keys() | plain.keys()
    for name, value in expected.items():
        torch.testing.assert_close(artifact.tensors[name].double(), value, rtol=1e-4, atol=1e-5)
    for name, value in plain.items():
        assert torch.equal(artifact.tensors[name], value), "the data set's own targets are what they were"


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("shards", [2, 5])
def test_shards_measure_classes_as_one_pass_does(make_run: MakeRun, shards: int, share: float) -> None:
    changes = [by_class(share, *MATCHERS), ("measure.batch", 3), ("measure.augmentation", "crop_flip_roll")]
    one = make_run(*changes).statistics()
    several = make_run(("measure.shards", shards), *changes).statistics()
    for whole, merged in zip(one, several, strict=True):
        whole_tensors, merged_tensors = whole.read().tensors, merged.read().tensors
        assert whole_tensors.keys() == merged_tensors.keys()
        assert merged.read().meta["images"] == 24
        for name, value in whole_tensors.items():
            assert torch.allclose(value, merged_tensors[name], rtol=2**-23, atol=0), name


def test_keys_know_what_is_measured_and_no_more(make_run: MakeRun) -> None:
    def options(*changes: tuple[str, Any]) -> dict[str, Any]:
        return dict(make_run(*changes).plan.statistics[0].options)

    none, half, whole = options(), options(by_class(0.5, *MATCHERS)), options(by_class(1.0, *MATCHERS))
    assert "by_class" not in none, "recipes that match nothing by class keep their keys"
    assert options(by_class(0.0, *MATCHERS)) == none
    assert options(by_class(0.1, *MATCHERS)) == half
    assert half["matchers"] == none["matchers"]
    assert [table["use"] for table in half["by_class"]] == sorted(MATCHERS)
    assert whole == {**half, "matchers": []}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_batch_norm_alone_is_matched_by_class(make_run: MakeRun, share: float) -> None:
    """As LPLD (arXiv 2410.15919) does it: no other matcher, nothing measured of the data set as a whole."""
    run = make_run(by_class(share, "bn"), ("synthesis.regularizers", []))
    statistics = run.statistics()
    assert all(name.startswith("by_class/") for unit in statistics for name in unit.read().tensors)
    plain = make_run(by_class(0.0, "bn"), ("synthesis.regularizers", []), out="plain").synthesized()
    for unit, other in zip(run.synthesized(), plain, strict=True):
        images, others = unit.read().tensors["images"], other.read().tensors["images"]
        assert images.shape == others.shape
        assert not torch.equal(images, others)


@pytest.mark.parametrize("batching", ["by_class", "across_classes"])
def test_image_batches_side_by_side_come_out_as_alone(make_run: MakeRun, batching: str) -> None:
    changes = [by_class(0.5, *MATCHERS), ("synthesis.batching", batching), ("synthesis.batch", 2)]
    alone = make_run(*changes, ("synthesis.batches_per_step", 1)).synthesized()
    run = make_run(*changes, ("synthesis.batches_per_step", 3), out="together")
    run.statistics()
    first = run.plan.image_batches
    payloads = first[0].together(run.context, first)
    for unit, (tensors, _) in zip(alone, payloads, strict=True):
        difference = unit.read().tensors["images"].int() - tensors["images"].int()
        assert int(difference.abs().max()) <= 1


def test_batches_of_one_class_pass_over_an_empty_class() -> None:
    images, labels = torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 2, 0, 2])
    batches = batches_of_one_class(TensorSplit(images, labels, ("a", "b", "c")), 2, torch.Generator())
    assert [labels[batch].tolist() for batch in batches] == [[0, 0], [2, 2], [2]]
    assert all(len(pair) == 2 for pair in pairwise([batch.tolist() for batch in batches]))


def test_a_batch_norm_needs_no_measuring_of_the_whole(registry) -> None:
    assert measured_sites(registry.create(Matcher, {"use": "bn", "by_class": 0.5}), net()) == []
