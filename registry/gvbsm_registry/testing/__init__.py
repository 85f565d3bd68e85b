"""Conformance: does a component do what its kind's contract asks?

    from gvbsm_registry.testing import cases

    @pytest.mark.parametrize("case", cases(MyMatcher(patch_size=2)), ids=str)
    def test_my_matcher(case):
        case()

or `check_matcher(MyMatcher())`, which runs all cases and raises one ConformanceError that lists those
that are not met and what the contract asks there. Nothing here needs pytest.
"""

from __future__ import annotations

from typing import Any

from gvbsm_registry.kinds import (
    Augmentation,
    Backbone,
    Callback,
    Codec,
    Component,
    Dataset,
    Ensembler,
    Executor,
    Exporter,
    Initializer,
    Matcher,
    Objective,
    Optimizer,
    Parameterization,
    Population,
    Regularizer,
    Schedule,
    Term,
)
from gvbsm_registry.testing.cases import Case, cases, run
from gvbsm_registry.testing.plugins import check_plugin
from gvbsm_registry.testing.requirements import ConformanceError, fail
from gvbsm_registry.testing.samples import PlainActivation
from gvbsm_registry.testing.steps import SampleState, SampleStep, SampleStock

__all__ = [
    "Case",
    "ConformanceError",
    "PlainActivation",
    "SampleState",
    "SampleStep",
    "SampleStock",
    "cases",
    "check",
    "check_augmentation",
    "check_backbone",
    "check_callback",
    "check_codec",
    "check_dataset",
    "check_ensembler",
    "check_executor",
    "check_exporter",
    "check_initializer",
    "check_matcher",
    "check_objective",
    "check_optimizer",
    "check_parameterization",
    "check_plugin",
    "check_population",
    "check_regularizer",
    "check_schedule",
    "check_term",
]


def check(component: Component | type[Component], **circumstances: Any) -> None:
    """Run every case of a component's kind; raises ConformanceError. See `cases` for the arguments."""
    run(cases(component, **circumstances))


def _check(kind: type[Component], component: Any, **circumstances: Any) -> None:
    if getattr(component, "kind", None) != kind.kind:
        fail(f"{component!r} is not a {kind.kind}: derive it from gvbsm_registry.{kind.__name__}")
    check(component, **circumstances)


def check_dataset(component: Dataset | type[Dataset]) -> None:
    """Check a data set, opening both its splits. Raises ConformanceError."""
    _check(Dataset, component)


def check_backbone(component: Backbone | type[Backbone], image_sizes: tuple[int, ...] = (16,)) -> None:
    """Check a backbone on images of the given sizes, which it must take. Raises ConformanceError."""
    _check(Backbone, component, image_sizes=image_sizes)


def check_matcher(component: Matcher | type[Matcher], model: Any = None) -> None:
    """Check a matcher on small models, and on `model` (RGB images of 16×16). Raises ConformanceError."""
    _check(Matcher, component, model=model)


def check_regularizer(component: Regularizer | type[Regularizer]) -> None:
    """Check a regularizer. Raises ConformanceError."""
    _check(Regularizer, component)


def check_initializer(component: Initializer | type[Initializer]) -> None:
    """Check an initializer on a small made-up data set. Raises ConformanceError."""
    _check(Initializer, component)


def check_augmentation(component: Augmentation | type[Augmentation]) -> None:
    """Check an augmentation. Raises ConformanceError."""
    _check(Augmentation, component)


def check_schedule(component: Schedule | type[Schedule]) -> None:
    """Check a schedule. Raises ConformanceError."""
    _check(Schedule, component)


def check_optimizer(component: Optimizer | type[Optimizer]) -> None:
    """Check an optimizer. Raises ConformanceError."""
    _check(Optimizer, component)


def check_ensembler(component: Ensembler | type[Ensembler]) -> None:
    """Check an ensembler. Raises ConformanceError."""
    _check(Ensembler, component)


def check_objective(component: Objective | type[Objective]) -> None:
    """Check an objective. Raises ConformanceError."""
    _check(Objective, component)


def check_codec(component: Codec | type[Codec]) -> None:
    """Check a codec. Raises ConformanceError."""
    _check(Codec, component)


def check_executor(component: Executor | type[Executor]) -> None:
    """Check an executor. Raises ConformanceError."""
    _check(Executor, component)


def check_exporter(component: Exporter | type[Exporter]) -> None:
    """Check an exporter on a small made-up run. Raises ConformanceError."""
    _check(Exporter, component)


def check_term(component: Term | type[Term]) -> None:
    """Check a term on small networks. Raises ConformanceError."""
    _check(Term, component)


def check_population(component: Population | type[Population]) -> None:
    """Check a population on small networks. Raises ConformanceError."""
    _check(Population, component)


def check_parameterization(component: Parameterization | type[Parameterization]) -> None:
    """Check a parameterization. Raises ConformanceError."""
    _check(Parameterization, component)


def check_callback(component: Callback | type[Callback]) -> None:
    """Check a callback on a small made-up state. Raises ConformanceError."""
    _check(Callback, component)
