"""The recipe: everything that determines a run, as TOML tables checked by pydantic."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from gvbsm.fields import (
    UseAugmentation,
    UseBackbone,
    UseCodec,
    UseDataset,
    UseEnsembler,
    UseInitializer,
    UseMatcher,
    UseObjective,
    UseRegularizer,
    UseSchedule,
    named,
)
from gvbsm_registry import (
    Backbone,
    GvbsmError,
    Registry,
)
from gvbsm_registry.discovery import explain, unknown


class Section(BaseModel):
    """A table of the recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Pretrain(Section):
    """[squeeze] Training the backbones on the real data. With 0 epochs their own weights are used."""

    epochs: int = Field(5, ge=0, description="passes over the training split")
    batch: int = Field(64, ge=2, description="images; two at least, for BatchNorm")
    learning_rate: float = Field(0.05, gt=0, description="of SGD, at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    augmentation: UseAugmentation = named("crop_flip_roll")
    schedule: UseSchedule = named("cosine")
    floor: float = Field(0.0, ge=0, le=1, description="lowest test accuracy that a backbone may have")


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
    loop: Literal["reorder", "original"] = Field(
        "reorder", description="reorder: all images of few classes; original: one image of many classes"
    )
    backbone_order: Literal["cycle", "random"] = Field(
        "cycle", description="cycle: the backbones in turn; random: drawn for each step (Eq. 7)"
    )
    learning_rate: float = Field(0.05, gt=0, description="of Adam, at the start")
    betas: tuple[float, float] = Field((0.5, 0.9), description="of Adam")
    schedule: UseSchedule = named("cosine")
    cross_entropy: float = Field(1.0, ge=0, description="weight of the classification term")
    average_start: Literal["first", "zero"] = Field(
        "zero", description="running averages start at 0 (authors' code) or at the first batch's values"
    )
    matchers: tuple[UseMatcher, ...] = named(("bn", "conv_channel", "conv_patch"))
    regularizers: tuple[UseRegularizer, ...] = named(("dd",))
    initializer: UseInitializer = named("noise")
    augmentation: UseAugmentation = named("crop_flip_roll")
    group: int = Field(
        0, ge=0, description="image batches optimised in one forward pass; 0: by the device's memory"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the step with its taps; auto: if there are steps enough to earn it back"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the backbones' forward pass")
    log_every: int = Field(10, ge=1, description="steps, for each backbone, between two log lines")


class Relabel(Section):
    """Soft labels: the ensemble's logits on augmented views, stored by epoch (FKD)."""

    epochs: int = Field(300, ge=1, description="epochs of views")
    batch: int = Field(100, ge=1, description="views labelled, and mixed with each other, together")
    augmentation: UseAugmentation = named("resized_crop")
    cutmix: float = Field(1.0, ge=0, le=1, description="chance that a batch is CutMixed")
    cutmix_alpha: float = Field(1.0, gt=0, description="CutMix's area is drawn from Beta(α, α)")
    ensembler: UseEnsembler = named("mean")
    codec: UseCodec = named("fp16")
    keep: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the epochs that are labelled; students see these in turn",
    )
    block: int = Field(50, ge=1, description="epochs per file")


class Evaluation(Section):
    """Training students from scratch on the condensed set and on its baselines."""

    students: tuple[UseBackbone, ...] = Field(cast(Any, ("convnet",)), min_length=1, validate_default=True)
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one student is trained for each")
    epochs: int = Field(300, ge=1, description="passes over the condensed set")
    batch: int = Field(50, ge=1, description="views a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw or sgd")
    learning_rate: float = Field(1e-3, gt=0, description="at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    weight_decay: float = Field(0.01, ge=0, description="of the optimizer")
    schedule: UseSchedule = named("cosine")
    objective: UseObjective = named("mse_gt")
    test_every: int = Field(10, ge=1, description="epochs between two tests (the last is always tested)")
    distilled_hard: bool = Field(False, description="also train on the distilled images with hard labels")
    random: bool = Field(True, description="also train on as many random real images, the baseline")
    plain: bool = Field(
        False,
        description="also train on distilled and random images, hard labels, without augmentation (ARS)",
    )
    full: bool = Field(False, description="also train on the whole data set, as in [pretrain]")

    @field_validator("students")
    @classmethod
    def _from_scratch(cls, students: tuple[Backbone, ...]) -> tuple[Backbone, ...]:
        for student in students:
            if student.weights is not None:
                raise PydanticCustomError(
                    "gvbsm",
                    "student {title} has weights, but students are trained from scratch; leave weights out",
                    {"title": repr(student.title)},
                )
        return students


class Recipe(Section):
    """A whole recipe."""

    name: str = Field("unnamed", description="the file's name, if not given")
    reproduces: str = Field("", description="the published table and row that this recipe reproduces")
    seed: int = Field(0, ge=0, description="all randomness derives from it")
    data: UseDataset = named("digits")
    backbones: tuple[UseBackbone, ...] = Field(cast(Any, ("convnet",)), min_length=1, validate_default=True)
    pretrain: Pretrain
    measure: Measure
    synthesis: Synthesis
    relabel: Relabel
    evaluation: Evaluation

    def toml(self) -> str:
        """Return the recipe with every default written out, as TOML that makes an equal recipe."""
        return tomli_w.dumps(self.tables(), multiline_strings=False)

    def tables(self) -> dict[str, Any]:
        """Return the recipe as plain tables."""
        return self.model_dump(mode="json", exclude_none=True)


def load(source: str | Path, registry: Registry, overrides: Sequence[tuple[str, Any]] = ()) -> Recipe:
    """Load a recipe by name or path and apply `overrides`, pairs of dotted key and value, in order.

    Raises GvbsmError if there is no such recipe, it is no TOML, or anything in it is wrong.
    """
    path = find(source, registry)
    tables = read_tables(path)
    tables.setdefault("name", path.stem)
    for key, value in overrides:
        _write_out_list(tables, key)
        override(tables, key, value)
    return make(tables, registry, where=str(path))


def find(source: str | Path, registry: Registry) -> Path:
    """Return the path of a recipe given by name or path; raises GvbsmError if there is none."""
    shipped = registry.recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise GvbsmError(f"recipe {path}: no such file; 'gvbsm recipes' lists the shipped ones")
    raise GvbsmError(unknown("recipe", str(source), shipped))


def read_tables(path: Path) -> dict[str, Any]:
    """Parse a TOML file; raises GvbsmError naming the path if it can't be read or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GvbsmError(f"recipe {path}: is not TOML ({error}); correct it there") from error
    except OSError as error:
        raise GvbsmError(f"recipe {path}: can't be read ({error.strerror}); give another path") from error


def make(tables: Mapping[str, Any], registry: Registry, where: str) -> Recipe:
    """Check plain tables and make them a recipe; raises GvbsmError naming `where` and every wrong key."""
    sections = ("pretrain", "measure", "synthesis", "relabel", "evaluation")
    try:
        return Recipe.model_validate(
            {**{name: {} for name in sections}, **tables}, context={"registry": registry}
        )
    except ValidationError as error:
        raise GvbsmError(f"recipe {where}: {explain(error, Recipe)}") from error


def _write_out_list(tables: dict[str, Any], key: str) -> None:
    """Write out the list that `key` leads into (`synthesis.matchers.0`), where it was left to its default."""
    fields, table = Recipe.model_fields, tables
    for part, below in pairwise(key.split(".")):
        field = fields.get(part)
        if field is None or not isinstance(table, dict):
            return
        if below.isdecimal() and isinstance(field.default, tuple):
            table.setdefault(part, list(field.default))
            return
        fields, table = getattr(field.annotation, "model_fields", {}), table.setdefault(part, {})


def override(tables: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key such as `synthesis.matchers.0.momentum` in plain tables.

    Raises GvbsmError if the key leads through something that is no table or beyond the end of a list.
    """
    *parents, last = key.split(".")
    place: Any = tables
    for part in parents:
        if isinstance(place, list):
            place = place[_position(place, part, key)]
        else:
            if isinstance(place.get(part), str):  # a component given by name alone becomes a table
                place[part] = {"use": place[part]}
            place = place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise GvbsmError(f"--set {key}: {part!r} is no table; give the key of a value")
    if isinstance(place, list):
        place[_position(place, last, key)] = value
    else:
        place[last] = value


def _position(place: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise GvbsmError(f"--set {key}: {part!r} is no position in a list of {len(place)} (they start at 0)")
    position = int(part)
    if isinstance(place[position], str):
        place[position] = {"use": place[position]}
    return position
