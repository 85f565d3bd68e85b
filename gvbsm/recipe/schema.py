"""The recipe: everything that determines a run, as TOML tables checked by pydantic."""

from __future__ import annotations

from typing import Any, Literal, cast

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from gvbsm.recipe.fields import (
    UseAugmentation,
    UseBackbone,
    UseCallback,
    UseCodec,
    UseDataset,
    UseEnsembler,
    UseInitializer,
    UseMatcher,
    UseObjective,
    UseOptimizer,
    UseParameterization,
    UsePopulation,
    UseRegularizer,
    UseSchedule,
    UseTerm,
    components_of,
)
from gvbsm_registry import Backbone, Matcher, named

NO_RESULT: JsonDict = {"changes_results": False}
"""Marks a key that says how work is done or checked, not what comes out: it is in no unit's key."""


class Section(BaseModel):
    """A table of the recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def options(self, *without: str) -> dict[str, Any]:
        """Return the keys that results depend on, as JSON values; those in `without` are left out, too."""
        return self.model_dump(mode="json", exclude={*self.idle_keys(), *without})

    @classmethod
    def idle_keys(cls) -> set[str]:
        """Return the keys that no result depends on."""
        return {name for name, field in cls.model_fields.items() if field.json_schema_extra == NO_RESULT}


class Pretrain(Section):
    """[squeeze] Training the backbones on the real data. With 0 epochs their own weights are used."""

    epochs: int = Field(5, ge=0, description="passes over the training split")
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


class Measure(Section):
    """One pass over the real data that records what the matchers ask for (Eq. 9)."""

    batch: int = Field(64, ge=1, description="images whose statistics are taken together")
    augmentation: UseAugmentation = named("crop_flip_roll")
    shards: int = Field(1, ge=1, description="parts of the data that are measured by themselves, then merged")


class Synthesis(Section):
    """[recover] Optimising the images."""

    ipc: int = Field(10, ge=1, description="images per class")
    iterations: int = Field(1000, ge=0, description="steps; 0 keeps the initializer's images")
    batch: int = Field(50, ge=1, description="images optimised together")
    batching: Literal["by_class", "one_class", "across_classes"] = Field(
        "by_class",
        description="by_class: all images of few classes; one_class: of one class each, however many; "
        "across_classes: one image of many classes",
    )
    population: UsePopulation = named("pretrained")
    learning_rate: float = Field(0.05, gt=0, description="of the optimizer, at the start")
    optimizer: UseOptimizer = named({"use": "adam", "betas": [0.5, 0.9]})
    schedule: UseSchedule = named("cosine")
    terms: tuple[UseTerm, ...] = named(("cross_entropy",))
    ema_init: Literal["first", "zero"] = Field(
        "zero", description="running averages start at 0 (authors' code) or at the first batch's values"
    )
    matchers: tuple[UseMatcher, ...] = named(("bn", "conv_channel", "conv_patch"))
    regularizers: tuple[UseRegularizer, ...] = named(("dd",))
    initializer: UseInitializer = named("noise")
    parameterization: UseParameterization = named("pixels")
    callbacks: tuple[UseCallback, ...] = ()
    augmentation: UseAugmentation = named("crop_flip_roll")
    batches_per_step: int = Field(
        0,
        ge=0,
        json_schema_extra=NO_RESULT,
        description="image batches optimised in one forward pass; 0: by the device's memory",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the step with what it records; auto: if there are steps enough to earn it back",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the backbones' forward pass")
    checkpoint_minutes: float = Field(
        5.0,
        gt=0,
        json_schema_extra=NO_RESULT,
        description="minutes between two checkpoints of a unit, from which it goes on when it was stopped",
    )
    log_every: int = Field(
        10, ge=1, json_schema_extra=NO_RESULT, description="steps, for each backbone, between two log lines"
    )

    @property
    def separable(self) -> bool:
        """Whether image batches can be optimised each by itself."""
        terms = (*self.terms, *self.matchers, *self.regularizers)
        return self.population.separable and all(term.separable for term in terms)

    @property
    def joint(self) -> bool:
        """Whether several image batches can be optimised in one forward pass."""
        return self.population.joint and not self.callbacks and self.all_matchers == self.matchers

    @property
    def all_matchers(self) -> tuple[Matcher, ...]:
        """The matchers, and those that other terms hold."""
        held = components_of([*self.terms, *self.regularizers])
        return (*self.matchers, *(each for each in held if isinstance(each, Matcher)))


class Relabel(Section):
    """Soft labels: the ensemble's logits on augmented views, stored by epoch (FKD)."""

    teachers: tuple[UseBackbone, ...] = Field(
        (),
        description="networks that label, pretrained as in [pretrain], or as they are if they have weights; "
        "one that equals a backbone is that one; none: the backbones",
    )
    batch_norm: Literal["running", "batch"] = Field(
        "running",
        description="statistics of the teachers' BatchNorm: running ones, or those of each labelled batch",
    )
    epochs: int = Field(300, ge=1, description="epochs of views")
    batch: int = Field(100, ge=1, description="views labelled, and mixed with each other, together")
    augmentation: UseAugmentation = named("resized_crop")
    cutmix: float = Field(1.0, ge=0, le=1, description="chance that a batch is CutMixed")
    cutmix_alpha: float = Field(1.0, gt=0, description="CutMix's area is drawn from Beta(α, α)")
    ensembler: UseEnsembler = named("mean")
    temperature: float = Field(1.0, gt=0, description="what the ensemble's logits are divided by")
    codec: UseCodec = named("fp16")
    keep_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the epochs that are labelled; students see these in turn",
    )
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
    epochs: int = Field(300, ge=1, description="passes over the condensed set")
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


class Published(Section):
    """One published figure: what somebody reports of a method on a data set."""

    data: str = Field(description="the data set, by the name of its component or `data_name`")
    ipc: int = Field(ge=1, description="images per class")
    student: str = Field(description="the network that was trained, as it is typed or in words")
    top1: float = Field(ge=0, le=100, description="in percent")
    source: str = Field("", description="where it stands")


class Recipe(Section):
    """A whole recipe."""

    name: str = Field("unnamed", description="the file's name, if not given")
    description: str = Field(
        "", json_schema_extra=NO_RESULT, description="what this recipe is, in one sentence"
    )
    reproduces: str = Field(
        "",
        json_schema_extra=NO_RESULT,
        description="the published table and row that this recipe reproduces, if any",
    )
    method: str = Field(
        "", json_schema_extra=NO_RESULT, description="the method, by the name of its recipe (methods/NAME)"
    )
    protocol: str = Field(
        "",
        json_schema_extra=NO_RESULT,
        description='by which students are trained (protocols/NAME), and ", changed" if not all of it holds',
    )
    seed: int = Field(0, ge=0, description="all randomness derives from it")
    data: UseDataset = named("digits")
    data_name: str = Field(
        "",
        json_schema_extra=NO_RESULT,
        description="what published figures call the data set, if not by the name of `data`",
    )
    backbones: tuple[UseBackbone, ...] = Field(cast(Any, ("convnet",)), min_length=1, validate_default=True)
    pretrain: Pretrain
    measure: Measure
    synthesis: Synthesis
    relabel: Relabel
    evaluation: Evaluation
    published: tuple[Published, ...] = Field(
        (),
        json_schema_extra=NO_RESULT,
        description="figures of others (`[[published]]`: data, ipc, student, top1 in percent, source): those "
        "of this data set and IPC are shown beside ours",
    )

    components: dict[str, str] = Field(
        {},
        json_schema_extra=NO_RESULT,
        description="by KIND:NAME, the distribution and version of each component; written by gvbsm, and "
        "read when one is gone",
    )

    def toml(self) -> str:
        """Return the recipe with every default written out, as TOML that makes an equal recipe."""
        return tomli_w.dumps(self.tables(), multiline_strings=False)

    def tables(self) -> dict[str, Any]:
        """Return the recipe as plain tables."""
        return self.model_dump(mode="json", exclude_none=True)

    def result_tables(self) -> dict[str, Any]:
        """Return the tables without the keys that no result depends on."""
        tables = {key: value for key, value in self.tables().items() if key not in self.idle_keys()}
        for name, field in type(self).model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                for key in field.annotation.idle_keys():
                    tables[name].pop(key, None)
        return tables
