"""The recipe: everything that determines a run, as TOML tables checked by pydantic."""

from __future__ import annotations

from typing import Any, Literal, cast

import tomli_w
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gvbsm.recipe.fields import (
    SafeName,
    UseAugmentation,
    UseBackbone,
    UseCallback,
    UseDataset,
    UseInitializer,
    UseMatcher,
    UseOptimizer,
    UseParameterization,
    UsePopulation,
    UseRegularizer,
    UseSchedule,
    UseTerm,
    components_of,
)
from gvbsm.recipe.learning import Evaluation, Pretrain, Relabel
from gvbsm.recipe.section import NO_RESULT, Section
from gvbsm_registry import Matcher, named


class Measure(Section):
    """One pass over the real data that records what the matchers ask for (Eq. 9)."""

    batch: int = Field(64, ge=1, description="images whose statistics are taken together")
    augmentation: UseAugmentation = named("crop_flip_roll")
    shards: int = Field(
        1,
        ge=1,
        description="parts of the data that are measured by themselves, then merged; at most one a batch",
    )


class Synthesis(Section):
    """[recover] Optimising the images."""

    ipc: int = Field(10, ge=1, le=10**6, description="images per class")
    iterations: int = Field(1000, ge=0, le=10**8, description="steps; 0 keeps the initializer's images")
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
        "zero",
        description="where running averages start; zero: at 0, as in the authors' code; first: at the first "
        "batch's values",
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
        description="true or false: whether the step is compiled, with what it records; auto: if there are "
        "steps enough to earn it back",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="fp32 or bf16: of the backbones' forward pass"
    )
    checkpoint_minutes: float = Field(
        5.0,
        gt=0,
        json_schema_extra=NO_RESULT,
        description="minutes between two checkpoints of a unit, from which it goes on when it was stopped",
    )
    log_every: int = Field(
        10, ge=1, json_schema_extra=NO_RESULT, description="steps, for each backbone, between two log lines"
    )

    @model_validator(mode="after")
    def _matchers_have_networks_to_match(self) -> Synthesis:
        if self.iterations and self.population.keeps == "none" and self.all_matchers:
            raise PydanticCustomError(
                "gvbsm",
                "matchers compare images with what pretrained networks saw of real ones, but population "
                "'{population}' takes none; set synthesis.matchers = [], or take another population",
                {"population": self.population.full_name},
            )
        return self

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


class Published(Section):
    """One published figure: what somebody reports of a method on a data set."""

    data: str = Field(description="the data set, by the name of its component or `data_name`")
    ipc: int = Field(ge=1, description="images per class")
    student: str = Field(description="the network that was trained, as it is typed or in words")
    top1: float = Field(ge=0, le=100, description="in percent")
    source: str = Field("", description="where it stands")


class Recipe(Section):
    """A whole recipe."""

    name: SafeName = Field("unnamed", description="the file's name, if not given")
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
    seed: int = Field(0, ge=0, le=2**63, description="all randomness derives from it")
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
        description="figures of others (`[[published]]`: data, ipc, student, top1 in percent, source); the "
        "resolved recipe keeps those of its data set, and those of its IPC are shown beside ours",
    )

    components: dict[str, str] = Field(
        {},
        json_schema_extra=NO_RESULT,
        description="by KIND:NAME, the distribution and version of each component; written by gvbsm, and "
        "read when one is gone",
    )

    @model_validator(mode="after")
    def _students_take_whole_batches(self) -> Recipe:
        ours, theirs = self.evaluation.batch, self.relabel.batch
        if self.relabel.pruning == "batches" and self.evaluation.soft and ours != theirs:
            raise PydanticCustomError(
                "gvbsm",
                'relabel.pruning = "batches" keeps whole batches for students to train on, so that '
                "relabel.batch ({theirs}) and evaluation.batch ({ours}) must be equal",
                {"ours": ours, "theirs": theirs},
            )
        return self

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
