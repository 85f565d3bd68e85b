"""The kinds of component: what a plugin may add.

A component is a frozen pydantic model. Its fields are its options (validated; an unknown key is an error;
`Field(description=...)` is its help), its class attribute `name` is what a user types, and its base class is
its kind. A name that ends in `/*` is a family: `use = "timm/vit_tiny"` makes the component `timm/*` with
`variant = "vit_tiny"`.

Import torch inside methods, not at the top of a plugin module: listing plugins must stay cheap.
"""

from __future__ import annotations

from gvbsm_registry.kinds.component import Component
from gvbsm_registry.kinds.images import Augmentation, Dataset, Initializer
from gvbsm_registry.kinds.networks import Backbone, Ensembler, Member
from gvbsm_registry.kinds.running import Codec, Executor, Exporter, Task
from gvbsm_registry.kinds.synthesis import Callback, Parameterization, Population
from gvbsm_registry.kinds.terms import Activation, Matcher, Objective, Regularizer, Term
from gvbsm_registry.kinds.training import Optimizer, Schedule

__all__ = [
    "CONTRACT_VERSION",
    "KINDS",
    "Activation",
    "Augmentation",
    "Backbone",
    "Callback",
    "Codec",
    "Component",
    "Dataset",
    "Ensembler",
    "Executor",
    "Exporter",
    "Initializer",
    "Matcher",
    "Member",
    "Objective",
    "Optimizer",
    "Parameterization",
    "Population",
    "Regularizer",
    "Schedule",
    "Task",
    "Term",
]

CONTRACT_VERSION = "2.0"

KINDS: tuple[type[Component], ...] = (
    Dataset,
    Backbone,
    Population,
    Matcher,
    Regularizer,
    Term,
    Parameterization,
    Callback,
    Initializer,
    Augmentation,
    Schedule,
    Optimizer,
    Ensembler,
    Codec,
    Objective,
    Executor,
    Exporter,
)
