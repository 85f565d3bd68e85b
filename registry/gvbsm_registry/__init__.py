"""The contract between the gvbsm engine and its plugins."""

from __future__ import annotations

from gvbsm_registry.artifacts import Artifact
from gvbsm_registry.discovery import Registry, discover, hookimpl
from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.events import StageFinished, StageStarted, Step
from gvbsm_registry.fields import Used, named
from gvbsm_registry.finished import FinishedRun
from gvbsm_registry.kinds import (
    CONTRACT_VERSION,
    KINDS,
    Activation,
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
    Member,
    Objective,
    Optimizer,
    Parameterization,
    Population,
    Regularizer,
    Schedule,
    Task,
    Term,
)
from gvbsm_registry.plugin import Plugin
from gvbsm_registry.source import CommitteeMember, Source
from gvbsm_registry.splits import Split, TensorSplit
from gvbsm_registry.step import Memory, Network, OpenPopulation, Stock, SynthesisState, SynthesisStep
from gvbsm_registry.views import View, identity_view

__all__ = [
    "CONTRACT_VERSION",
    "KINDS",
    "Activation",
    "Artifact",
    "Augmentation",
    "Backbone",
    "Callback",
    "Codec",
    "CommitteeMember",
    "Component",
    "Dataset",
    "Ensembler",
    "Executor",
    "Exporter",
    "FinishedRun",
    "GvbsmError",
    "Initializer",
    "Matcher",
    "Member",
    "Memory",
    "Network",
    "Objective",
    "OpenPopulation",
    "Optimizer",
    "Parameterization",
    "Plugin",
    "Population",
    "Registry",
    "Regularizer",
    "Schedule",
    "Source",
    "Split",
    "StageFinished",
    "StageStarted",
    "Step",
    "Stock",
    "SynthesisState",
    "SynthesisStep",
    "Task",
    "TensorSplit",
    "Term",
    "Used",
    "View",
    "discover",
    "hookimpl",
    "identity_view",
    "named",
]
