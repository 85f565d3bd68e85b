"""The contract between the gvbsm engine and its plugins."""

from __future__ import annotations

from gvbsm_registry.artifacts import Artifact
from gvbsm_registry.discovery import Plugin, Registry, discover, hookimpl
from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.events import StageFinished, StageStarted, Step
from gvbsm_registry.finished import FinishedRun
from gvbsm_registry.kinds import (
    CONTRACT_VERSION,
    KINDS,
    Activation,
    Augmentation,
    Backbone,
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
    Regularizer,
    Schedule,
    Task,
)
from gvbsm_registry.source import CommitteeMember, Source
from gvbsm_registry.splits import Split, TensorSplit
from gvbsm_registry.views import View, identity_view

__all__ = [
    "CONTRACT_VERSION",
    "KINDS",
    "Activation",
    "Artifact",
    "Augmentation",
    "Backbone",
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
    "Objective",
    "Optimizer",
    "Plugin",
    "Registry",
    "Regularizer",
    "Schedule",
    "Source",
    "Split",
    "StageFinished",
    "StageStarted",
    "Step",
    "Task",
    "TensorSplit",
    "View",
    "discover",
    "hookimpl",
    "identity_view",
]
