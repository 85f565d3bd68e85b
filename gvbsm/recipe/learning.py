"""The recipe's tables about networks that learn: pretraining, labels, students."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gvbsm.recipe.fields import (
    UseAugmentation,
    UseBackbone,
    UseCodec,
    UseEnsembler,
    UseObjective,
    UseOptimizer,
    UseSchedule,
)
from gvbsm.recipe.section import NO_RESULT, Section
from gvbsm_registry import Backbone, named

MOST_EPOCHS = 10**6


class Pretrain(Section):
    """[squeeze] Training the backbones on the real data. With 0 epochs their own weights are used."""

    epochs: int = Field(5, ge=0, le=MOST_EPOCHS, description="passes over the training split")
    batch: int = Field(64, ge=2, description="images; two at least, for BatchNorm")
    learning_rate: float = Field(0.05, gt=0, description="of the optimizer, at the start")
    optimizer: UseOptimizer = named({"use": "sgd", "momentum": 0.9, "weight_decay": 5e-4})
    augmentation: UseAugmentation = named("crop_flip_roll")
    schedule: UseSchedule = named("cosine")
    min_accuracy: float = Field(
        0.0,
        ge=0,
        le=1,
        json_schema_extra=NO_RESULT,
        description="lowest test accuracy that a backbone may have",
    )


class Relabel(Section):
    """Soft labels: the ensemble's logits on augmented views, stored by epoch (FKD)."""

    teachers: tuple[UseBackbone, ...] = Field(
        (),
        description="networks that label, pretrained as in [pretrain], or as they are if they have weights; "
        "one that equals a backbone is that one; none: the backbones",
    )
    batch_norm: Literal["running", "batch"] = Field(
        "running",
        description="statistics of the teachers' BatchNorm; running: the running ones; batch: those of "
        "each labelled batch",
    )
    epochs: int = Field(300, ge=1, le=MOST_EPOCHS, description="epochs of views")
    batch: int = Field(100, ge=1, description="views labelled, and mixed with each other, together")
    augmentation: UseAugmentation = named("resized_crop")
    cutmix: float = Field(1.0, ge=0, le=1, description="chance that a batch is CutMixed")
    cutmix_alpha: float = Field(
        1.0, ge=0.01, le=1000, description="CutMix's area is drawn from Beta(α, α), which below 0.01 can't be"
    )
    ensembler: UseEnsembler = named("mean")
    temperature: float = Field(1.0, gt=0, description="what the labels are divided by")
    codec: UseCodec = named("fp16")
    pruning: Literal["epochs", "batches", "classes"] = Field(
        "epochs",
        description="what is kept of the labels; epochs: the first epochs, which students see in turn; "
        "batches: random batches, which students train on in random order; classes: random views of each "
        "class",
    )
    keep_fraction: float = Field(1.0, gt=0, le=1, description="share of the labels that are made at all")
    epochs_per_file: int = Field(50, ge=1, json_schema_extra=NO_RESULT, description="epochs per file")

    @model_validator(mode="after")
    def _batches_have_statistics(self) -> Relabel:
        if self.batch_norm == "batch" and self.batch < 2:
            raise PydanticCustomError("gvbsm", 'batch_norm = "batch" needs a batch of 2 or more')
        return self


class Evaluation(Section):
    """Training students from scratch on the condensed set and on its baselines."""

    students: tuple[UseBackbone, ...] = Field(cast(Any, ("convnet",)), min_length=1, validate_default=True)
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one student is trained for each")
    epochs: int = Field(300, ge=1, le=MOST_EPOCHS, description="passes over the condensed set")
    batch: int = Field(50, ge=1, description="views a step")
    optimizer: UseOptimizer = named({"use": "adamw", "weight_decay": 0.01})
    learning_rate: float = Field(1e-3, gt=0, description="of the optimizer, at the start")
    schedule: UseSchedule = named("cosine")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share that each step keeps of a running mean of the weights, which is tested; 0: none",
    )
    soft: bool = Field(
        True, description="train on soft labels; false: on hard ones alone, and nothing is labelled"
    )
    objective: UseObjective = named("mse_gt")
    augmentation: UseAugmentation = named("resized_crop")
    test_every: int = Field(10, ge=1, description="epochs between two tests (the last is always tested)")
    distilled_hard: bool = Field(False, description="also train on the distilled images with hard labels")
    random_baseline: bool = Field(True, description="also train on as many random real images, the baseline")
    without_augmentation: bool = Field(
        False,
        description="also train on distilled and random images, hard labels, without augmentation (ARS)",
    )
    full_baseline: bool = Field(False, description="also train on the whole data set, as in [pretrain]")

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise PydanticCustomError("gvbsm", "must be different numbers from 0 up: one is a student's")
        return seeds

    @field_validator("students")
    @classmethod
    def _from_scratch(cls, students: tuple[Backbone, ...]) -> tuple[Backbone, ...]:
        for student in students:
            if student.weights is not None:
                raise PydanticCustomError(
                    "gvbsm",
                    "student {title} has weights, but students are trained from scratch; leave weights out",
                    {"title": repr(student.full_name)},
                )
        return students
