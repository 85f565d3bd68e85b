"""The engine's matching against the paper's step written the obvious way, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.textbook import MATCHERS, TextbookStep, measure
from gvbsm.matching.activations import ActivationRecorder
from gvbsm.matching.asking import sites_of
from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.statistic import Statistic
from gvbsm.matching.targets import target_name
from gvbsm.matching.terms import Matching, term_names
from gvbsm_registry import GvbsmError, Matcher, Registry


class Net(nn.Module):
    """BatchNorm before and after convolutions, a residual path that shares its input, a stride."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.main = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.inner = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.short = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.last(self.inner(self.main(x)).relu()) + self.short(x)
        return self.head(x.mean((2, 3)))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(channels: int = 2) -> nn.Module:
    torch.manual_seed(3)
    model = Net(channels).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model.eval().requires_grad_(False)


def matchers(registry: Registry, **options: Any) -> list[Matcher]:
    """All three; an option is one value, or one for each matcher by name."""
    each = {
        name: {key: value[name] if isinstance(value, dict) else value for key, value in options.items()}
        for name in MATCHERS
    }
    return [registry.create(Matcher, {"use": name, **each[name]}) for name in MATCHERS]


def named(wanted: list[Matcher], targets: dict[str, Any]) -> dict[str, Tensor]:
    """The textbook's targets under the names that the engine stores them by."""
    return {
        target_name(matcher, site, statistic): value
        for matcher in wanted
        for site, moments in targets.get(matcher.name, {}).items()
        for statistic, value in moments.items()
    }


def engine_terms(
    model, matching: Matching, images: Tensor, uniforms: Tensor, fused: bool = True
) -> dict[str, Tensor]:
    groups, parts = matching.groups, matching.parts
    with ActivationRecorder(model, matching.sites, groups, fused, parts=parts) as recorder:
        model(images)
    return matching.step_losses(matching.statistics_of(recorder.activations()), uniforms)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("drop", [0.0, {"bn": 0.0, "conv_channel": 0.5, "conv_patch": 0.3}])
@pytest.mark.parametrize("start", ["zero", "first"])
@pytest.mark.parametrize(("groups", "size", "channels", "side"), [(1, 5, 2, 7), (3, 2, 1, 14), (3, 1, 2, 9)])
def test_every_term_and_gradient_equals_the_textbook(
    registry, groups, size, channels, side, start, drop, fused
):
    model = net(channels)
    momentum = {"bn": 0.8, "conv_channel": 0.4, "conv_patch": 0.0}
    weight = {"bn": 0.01, "conv_channel": 0.3, "conv_patch": 2.0}
    first = {"bn": 10.0, "conv_channel": 1.0, "conv_patch": 3.0}
    targets = measure(model, [randn(6, channels, side, side, seed=s) for s in (90, 91)])
    options = {"momentum": momentum, "drop_rate": drop, "first_site_weight": first, "weight": weight}
    wanted = matchers(registry, **options)
    matching = Matching(model, wanted, named(wanted, targets), groups, start)
    books = [TextbookStep(model, targets=targets, start=start, dd_weight=0, **options) for _ in range(groups)]
    draws = torch.Generator().manual_seed(17)
    for step in range(5):
        images = randn(groups * size, channels, side, side, seed=step).requires_grad_()
        uniforms = torch.rand(groups, len(matching.sites), generator=draws, dtype=torch.float64)
        ours = engine_terms(model, matching, images, uniforms, fused)
        theirs = dict.fromkeys(MATCHERS, torch.zeros((), dtype=torch.float64))
        for book, lot, uniform in zip(books, images.chunk(groups), uniforms, strict=True):
            by_site = dict(zip(matching.sites, uniform.tolist(), strict=True))
            _, terms = book.loss(lot, torch.zeros(size, dtype=torch.long), by_site)
            theirs = {name: theirs[name] + terms[name] for name in MATCHERS}
        assert list(ours) == list(MATCHERS)
        for name in MATCHERS:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-11, atol=1e-11)
            if not theirs[name].requires_grad:  # all its sites dropped
                assert float(ours[name].detach()) == 0
                continue
            (grad,) = torch.autograd.grad(ours[name], images, retain_graph=True)
            (right,) = torch.autograd.grad(theirs[name], images, retain_graph=True)
            torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-11)


def test_without_momentum_it_is_equation_1(registry):
    model = net()
    wanted = [registry.create(Matcher, {"use": "bn", "momentum": 0, "first_site_weight": 1, "weight": 1})]
    matching = Matching(model, wanted, {})
    for seed in range(3):
        images = randn(4, 2, 7, 7, seed=seed).requires_grad_()
        ours = engine_terms(model, matching, images, torch.rand(1, len(matching.sites)))["bn"]
        stem = model.stem(images)
        inner = model.main(model.norm(stem).relu())
        plain = torch.zeros((), dtype=torch.float64)
        for seen, norm in ((stem, model.norm), (inner, model.inner)):
            mean = seen.mean((0, 2, 3))
            variance = (seen**2).mean((0, 2, 3)) - mean**2
            plain = plain + (mean - norm.running_mean).square().sum().sqrt()
            plain = plain + (variance - norm.running_var).square().sum().sqrt()
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
        pair = [torch.autograd.grad(loss, images)[0] for loss in (ours, plain)]
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("start", "share"), [("zero", 0.2), ("first", 1.0)])
def test_equation_14_value_is_the_averages_and_path_the_batchs(start, share):
    """‖μ_total − t‖ with gradient (μ_total − t) / ‖μ_total − t‖ towards μ."""
    target, keep = randn(5, seed=1), torch.ones(1, 1, dtype=torch.bool)
    statistic = Statistic([target], 1, start)
    average = torch.zeros(5, dtype=torch.float64)
    for step in range(4):
        now = randn(1, 5, seed=10 + step).requires_grad_()
        weight = share if step == 0 else 0.2
        average = (1 - weight) * average + weight * now.detach()[0]
        norm = statistic.update_and_distance(now, keep, 0.8)
        (grad,) = torch.autograd.grad(norm.sum(), now)
        distance = (average - target).square().sum().sqrt()
        torch.testing.assert_close(norm[0, 0], distance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad[0], (average - target) / distance, rtol=1e-11, atol=1e-12)


def test_a_perfect_match_costs_nothing_and_pulls_nowhere():
    target = randn(5)
    statistic = Statistic([target], 1, "first")
    now = target[None].clone().requires_grad_()
    norm = statistic.update_and_distance(now, torch.ones(1, 1, dtype=torch.bool), 0.8)
    (grad,) = torch.autograd.grad(norm.sum(), now)
    assert float(norm.detach()) < 1e-100
    assert torch.equal(grad, torch.zeros_like(grad))


def test_single_precision_where_the_mean_is_a_thousand_deviations(registry):
    wide, narrow = net(), net().float()
    images = (1000 + randn(8, 2, 14, 14)).float()
    targets = measure(wide, [1000 + randn(8, 2, 14, 14, seed=5)])
    wanted = matchers(registry)
    measured = {name: value.float() for name, value in named(wanted, targets).items()}
    found = {}
    for model, dtype in ((wide, torch.float64), (narrow, torch.float32)):
        matching = Matching(model, wanted, measured)
        x = images.to(dtype).requires_grad_()
        terms = engine_terms(model, matching, x, torch.ones(1, len(matching.sites)))
        found[dtype] = {
            n: (t.detach(), *torch.autograd.grad(t, x, retain_graph=True)) for n, t in terms.items()
        }
    for name, (value, grad) in found[torch.float64].items():
        ours, slope = found[torch.float32][name]
        assert float(ours) == pytest.approx(float(value), rel=1e-3)
        assert float((slope.double() - grad).norm() / grad.norm()) < 1e-3


def test_equal_drops_skip_the_same_sites_and_leave_their_averages(registry):
    model = net()
    wanted = [
        registry.create(
            Matcher, {"use": "conv_channel", "drop_rate": 0.4, "weight": 1, "first_site_weight": 1}
        )
        for _ in "ab"
    ]
    measured = named(wanted, measure(model, [randn(4, 2, 7, 7)]))
    matching = Matching(model, wanted, measured)
    assert [term.name for term in matching.terms] == ["conv_channel-1", "conv_channel-2"]
    uniforms = torch.tensor([[0.39, 0.4, 0.9, 0.1]])
    terms = engine_terms(model, matching, randn(4, 2, 7, 7, seed=3), uniforms)
    assert terms["conv_channel-1"] == terms["conv_channel-2"] > 0
    statistic = matching.terms[0].statistics["mean"]
    touched = [bool(statistic.average[0, statistic.site == site].any()) for site in range(4)]
    assert touched == [False, True, True, False]


def test_a_matcher_without_sites_is_left_out(registry):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2), nn.Flatten())
    wanted = matchers(registry)
    measured = named(wanted, measure(model.double(), [randn(2, 1, 5, 5)]))
    matching = Matching(model, wanted, measured)
    assert [term.name for term in matching.terms] == ["conv_channel", "conv_patch"]


def test_statistics_of_any_shape_are_matched():
    """A third-party matcher: a scalar and a matrix."""

    class Gram(Matcher):
        name = "gram"

        def sites(self, model):
            return ["last"]

        def statistics(self, activation):
            flat = activation.tensor.transpose(0, 1).flatten(1)
            return {"gram": flat @ flat.T / flat.shape[1], "peak": activation.tensor.amax()}

        def targets(self, module):
            return {"gram": torch.eye(6, dtype=torch.float64), "peak": torch.tensor(1.0)}

    model, images = net(), randn(4, 2, 7, 7)
    matching = Matching(model, [Gram(weight=1, first_site_weight=1, momentum=0)], {}, groups=2)
    ours = engine_terms(model, matching, images, torch.ones(2, 1))["gram"]
    seen = model.inner(model.main(model.norm(model.stem(images)).relu())).relu()
    plain = torch.zeros((), dtype=torch.float64)
    for lot in seen.chunk(2):
        gram = torch.einsum("bihw,bjhw->ij", lot, lot) / lot[:, 0].numel()
        plain = plain + (gram - torch.eye(6)).norm() + (lot.max() - 1).abs()
    torch.testing.assert_close(ours, plain)


def test_a_missing_target_names_the_stage_to_run(registry):
    with pytest.raises(GvbsmError, match="'conv_channel' has no measured targets for site 'stem'; run"):
        Matching(net(), matchers(registry), {})


def test_a_site_that_the_backbone_lacks_is_refused():
    class Lost(Matcher):
        name = "lost"

        def sites(self, model):
            return ["stem", "nowhere"]

        def statistics(self, activation):
            return {}

    with pytest.raises(GvbsmError, match="'lost' names the site 'nowhere'"):
        sites_of(Lost(), net())


def test_targets_are_named_by_what_they_depend_on(registry):
    def name(**options: Any) -> str:
        return target_name(registry.create(Matcher, {"use": "conv_patch", **options}), "a.b", "mean")

    assert name(patch_size=4, weight=5, momentum=0.1, drop_rate=0.2, first_site_weight=3) == name()
    assert name(patch_size=2) != name()
    assert name().endswith("/a.b/mean")


class Corner(Matcher):
    """The corner of the activation, under any name and of any size."""

    name = "corner"
    statistic: str = "corner"
    size: int = 1

    def sites(self, model):
        return ["stem", "last"]

    def statistics(self, activation):
        return {self.statistic: activation.tensor[0, 0, : self.size, 0]}

    def measured_by(self):
        return {"use": self.full_name}  # as a plugin's new version would, which measures otherwise


@pytest.mark.parametrize(
    ("changed", "asked"), [({"size": 2}, r"corner \[2\]"), ({"statistic": "edge"}, r"edge \[1\]")]
)
def test_targets_of_another_version_are_refused_in_one_line(changed, asked):
    model, matcher = net(), Corner(**changed)
    stored = {target_name(Corner(), site, "corner"): torch.zeros(1) for site in ("stem", "last")}
    matching = Matching(model, [matcher], stored)
    with pytest.raises(GvbsmError, match=rf"'corner' at site 'stem'.*corner \[1\], but.*{asked}; .*measure"):
        engine_terms(model, matching, randn(2, 2, 7, 7), torch.ones(1, 2))


def test_targets_with_other_names_at_one_site_are_refused_in_one_line():
    stored = {
        target_name(Corner(), "stem", "corner"): torch.zeros(1),
        target_name(Corner(), "last", "edge"): torch.zeros(1),
    }
    with pytest.raises(GvbsmError, match=r"'corner' at site 'last'.*edge \[1\], but.*corner \[1\]"):
        Matching(net(), [Corner()], stored)


@pytest.mark.parametrize("layers", [[nn.Flatten()], [nn.Flatten(), nn.Linear(18, 3)]])
def test_a_backbone_in_which_no_matcher_has_a_site_has_no_terms(registry, layers):
    model, images = nn.Sequential(*layers), torch.randn(2, 2, 3, 3)
    matched = MatchedBackbone(model, Matching(model, matchers(registry), {}))
    logits, terms = matched.observe(images, torch.rand(1, 0))
    torch.testing.assert_close(logits, model(images))
    assert matched.sites == []
    assert terms == {}


def test_terms_of_one_name_keep_their_numbers_in_every_backbone(registry):
    class OnLinear(Corner):
        name = "bn"

        def sites(self, model):
            return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]

        def targets(self, module):
            return {"corner": torch.zeros(1)}

    wanted = [OnLinear(), registry.create(Matcher, "bn")]
    assert term_names([*wanted, Corner()]) == ["bn-1", "bn-2", "corner"]
    assert [term.name for term in Matching(nn.Sequential(nn.BatchNorm2d(2)), wanted, {}).terms] == ["bn-2"]
