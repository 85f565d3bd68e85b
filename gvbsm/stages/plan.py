"""The graph of a run: every unit of work, and which of them must be done before which."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gvbsm.matching.asking import measured_sites, sites_of
from gvbsm.recipe.fields import identities
from gvbsm.recipe.schema import Recipe
from gvbsm.results.records import labels_of, student_names
from gvbsm.runtime.asking import built
from gvbsm.runtime.data import Data
from gvbsm.runtime.units import Unit
from gvbsm.stages import STAGES, evaluate, image_sets, measure, pretrain, real_images, relabel, synthesize
from gvbsm.stages.training import batches_of
from gvbsm_registry import Backbone, Initializer, Matcher, Registry


class Plan:
    """The units of a run of `recipe` on `data` into the folder `out`, sharing the folder `store`.

    Planning reads no artifact but the headers of label files that lie there; it builds the backbones, to see
    what has to be measured. sets: image sets made by something else, by name, in place of the planned ones.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        registry: Registry,
        out: Path,
        store: Path,
        sets: Mapping[str, Unit] | None = None,
    ) -> None:
        self.recipe, self.data, self.registry = recipe, data, registry
        self.out, self.store = out, store
        self._given_sets = sets

    def waves(self, stage: str) -> list[list[Unit]]:
        """Return the units of a stage in waves, each of which needs those before."""
        match stage:
            case "pretrain":
                waves = [self.networks]
            case "measure":
                waves = [self.shards, self.statistics]
            case "synthesis":
                waves = [self.preparation, self.image_batches, list(self.sets.values())]
            case "relabel":
                waves = [[block for blocks in self.labels.values() for block in blocks]]
            case "evaluation":
                waves = [self.students]
            case _:
                raise ValueError(f"{stage!r} is not one of the stages {', '.join(STAGES)}")
        return [wave for wave in waves if wave]

    @property
    def backbones(self) -> list[Unit]:
        """One unit for each backbone of the recipe, whether it is needed or not."""
        return self.all_networks[: len(self.recipe.backbones)]

    @property
    def teachers(self) -> list[Unit]:
        """One unit for each network that labels."""
        own = [self.all_networks[place] for place in pretrain.teachers_of(self.recipe)]
        return own or self.backbones

    @property
    def networks(self) -> list[Unit]:
        """One unit for each network that is pretrained, as synthesis or labels need it."""
        return [self.all_networks[place] for place in sorted(pretrain.needed(self.recipe))]

    @cached_property
    def all_networks(self) -> list[Unit]:
        """One unit for each backbone, then for each teacher that equals none."""
        planned = pretrain.plan_networks(self.recipe, self.registry, self.data.key)
        return [unit.stored_in(self.store / "backbones") for unit in planned]

    @property
    def shared(self) -> list[Unit]:
        """The units whose artifacts lie in the store."""
        return [*self.networks, *self.statistics, *self.preparation]

    def reason_for_nothing(self, stage: str) -> str:
        """Return why a stage has no work, if it has none for a reason that the recipe states; else ""."""
        return evaluate.HARD_ALONE if stage == "relabel" and not self.recipe.evaluation.soft else ""

    @cached_property
    def statistics(self) -> list[Unit]:
        """One unit for each backbone in which a matcher has targets to be measured."""
        section, matched = self.recipe.measure, pretrain.looks_through_trained(self.recipe.synthesis)
        planned = []
        for backbone, unit in zip(self.recipe.backbones, self.backbones, strict=True):
            mixed, by_class = self._to_measure(backbone) if matched else ([], [])
            if not mixed and not by_class:
                continue
            matchers = [m for m in self.recipe.synthesis.all_matchers if m in mixed or m in by_class]
            options: dict[str, Any] = {
                "measure": section.options("shards"),
                "matchers": sorted((matcher.measured_by() for matcher in mixed), key=str),
                "data": self.data.key,
                "seed": self.recipe.seed,
                "components": identities(self.registry, section, matchers),
            }
            if by_class:
                options["by_class"] = sorted((matcher.measured_by() for matcher in by_class), key=str)
            inputs = {"backbone": unit}
            whole = Unit("measure", unit.name, "statistics", measure.measure_backbone, options, inputs)
            folder = self.store / "statistics"
            shards = min(section.shards, batches_of(len(self.data.train), section.batch))
            planned.append(measure.split_into_shards(whole.stored_in(folder), shards, folder))
        return planned

    def _to_measure(self, backbone: Backbone) -> tuple[list[Matcher], list[Matcher]]:
        """Return the matchers whose targets are measured: those of the data set, and those of its classes."""
        train = self.data.train
        with torch.random.fork_rng(devices=[]):
            fresh = backbone.model_copy(update={"weights": None})
            model = built(fresh, len(self.data.classes), train.image_size, train.channels)
        matchers = self.recipe.synthesis.all_matchers
        mixed = [matcher for matcher in matchers if matcher.by_class < 1 and measured_sites(matcher, model)]
        return mixed, [matcher for matcher in matchers if matcher.by_class and sites_of(matcher, model)]

    @property
    def shards(self) -> list[Unit]:
        """What units of `statistics` that are not done yet are merged from."""
        return [shard for unit in self.statistics if not unit.done() for shard in unit.input_list("shards")]

    @cached_property
    def preparation(self) -> list[Unit]:
        """The unit for what the initializer works out beforehand, if it does."""
        initializer = self.recipe.synthesis.initializer
        if type(initializer).prepare is Initializer.prepare:
            return []
        options = {
            "initializer": initializer.to_recipe(),
            "data": self.data.key,
            "seed": self.recipe.seed,
            "components": identities(self.registry, initializer),
        }
        name, inputs = initializer.full_name, {"backbones": self._backbones_for(initializer.uses_networks)}
        unit = Unit("synthesis", name, "prepared", real_images.prepare_initializer, options, inputs)
        return [unit.stored_in(self.store / "prepared")]

    def _backbones_for(self, needed: bool) -> tuple[Unit, ...]:
        return tuple(self.backbones) if needed else ()

    @cached_property
    def image_batches(self) -> list[Unit]:
        """One unit for each image batch."""
        section = self.recipe.synthesis
        common = {
            "synthesis": section.options(),
            "match_weights": [backbone.match_weight for backbone in self.recipe.backbones],
            "data": self.data.key,
            "seed": self.recipe.seed,
            "components": identities(self.registry, section),
        }
        if section.iterations and not pretrain.looks_through_trained(section):
            backbones = self.recipe.backbones
            common["untrained"] = [pretrain.table_of(backbone) for backbone in backbones]
            common["components"] = identities(self.registry, section, *backbones)
        inputs = {
            "backbones": self._backbones_for(pretrain.synthesis_needs(section)),
            "statistics": tuple(self.statistics),
            "prepared": tuple(self.preparation),
        }
        return [
            Unit(
                "synthesis",
                f"batch-{number:04d}",
                "images",
                synthesize.optimise,
                {**common, "batch": number, "labels": labels, "ranks": ranks},
                inputs,
                how={name: getattr(section, name) for name in ("log_every", "checkpoint_minutes")},
                together=synthesize.optimise_together,
            ).stored_in(self.out / "units" / "synthesis")
            for number, (labels, ranks) in enumerate(
                image_sets.image_batches(len(self.data.classes), section)
            )
        ]

    @cached_property
    def sets(self) -> dict[str, Unit]:
        """The distilled set, and the baseline of random real images if the recipe wants it."""
        if self._given_sets is not None:
            return dict(self._given_sets)
        common = {"ipc": self.recipe.synthesis.ipc, "data": self.data.key}
        parts = tuple(self.image_batches)
        distilled = Unit(
            "synthesis",
            "distilled",
            "distilled",
            image_sets.assemble,
            common,
            {"parts": parts},
            self.out / "distilled" / "images.safetensors",
        )
        random = Unit(
            "synthesis",
            "random",
            "distilled",
            image_sets.draw_random,
            {**common, "seed": self.recipe.seed},
            path=self.out / "baselines" / "random" / "images.safetensors",
        )
        sets = {"distilled": distilled}
        return {**sets, "random": random} if self.recipe.evaluation.random_baseline else sets

    @cached_property
    def labels(self) -> dict[str, list[Unit]]:
        """By set, one unit for each block of labels; its file lies beside the images. None for hard labels.

        Blocks that are there already keep their size, so that another `epochs_per_file` repeats no work.
        """
        sets = self.sets if self.recipe.evaluation.soft else {}
        return {
            name: relabel.plan_blocks(
                self.recipe,
                self.registry,
                name,
                images,
                tuple(self.teachers),
                len(self.data.classes),
            )
            for name, images in sets.items()
        }

    @cached_property
    def students(self) -> list[Unit]:
        """One unit for each (set, kind of labels, augmented or not, student, seed)."""
        section = self.recipe.evaluation
        names = student_names([student.to_recipe() for student in section.students])
        return [
            self._student(student, name, seed, which, labels, augmented)
            for which, labels, augmented in evaluate.trainings(section)
            for student, name in zip(section.students, names, strict=True)
            for seed in section.seeds
        ]

    def _student(
        self, student: Backbone, name: str, seed: int, which: str, labels: str, augmented: bool
    ) -> Unit:
        recipe = self.recipe
        protocol = recipe.pretrain if which == "full" else recipe.evaluation
        without = () if which == "full" else (*evaluate.TRAINING_KEYS, "augmentation")
        kept = protocol.model_copy(update={} if which == "full" else {"augmentation": None})
        used: list[Any] = [student, kept]
        options = {
            "protocol": protocol.options(*without),
            "data": self.data.key,
            "set": which,
            "labels": labels,
            "student": student.to_recipe(),
            "student_seed": seed,
        }
        if labels == "hard" and which != "full":
            view = recipe.evaluation.augmentation if augmented else None
            options["augmentation"] = view.to_recipe() if view else None
            used.append(view)
        options["components"] = identities(self.registry, *used)
        inputs: dict[str, Any] = {"images": self.sets[which]} if which in self.sets else {}
        if labels == "soft":
            inputs["labels"] = tuple(self.labels[which])
        told = labels_of({"labels": labels, "augmented": augmented})
        unit_name = f"{which}/{told} {name} seed {seed}"
        work = evaluate.train_student
        unit = Unit("evaluation", unit_name, "accuracy", work, options, inputs, data_parallel=True)
        return unit.stored_in(self.out / "units" / "evaluation")
