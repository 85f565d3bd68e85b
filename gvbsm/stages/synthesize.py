"""Synthesize [recover]: optimise the images until they produce the real data's statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.terms import Matching
from gvbsm.recipe.schema import Synthesis
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import Data
from gvbsm.runtime.execution import out_of_memory
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.checkpoints import Checkpoint
from gvbsm.stages.pretrain import load_trained, member, untrained
from gvbsm.stages.real_images import RealData, starting_images
from gvbsm.synthesis.loop import NotFiniteError, OnStep, SynthesisLoop
from gvbsm.synthesis.networks import BackboneStock, PlannedNetwork
from gvbsm.synthesis.real import RealImages
from gvbsm_registry import Artifact, Backbone, GvbsmError, Step
from gvbsm_registry.artifacts import write

COMPILE_FROM = 1000


def batches_per_step(section: Synthesis, data: Data, device: torch.device) -> int:
    """How many image batches to optimise in one forward pass, from the device's memory; 1 on a CPU.

    A step is taken to need 4000 floats for every input pixel, and may take half the memory.
    """
    if not section.joint:
        return 1
    if section.batches_per_step or device.type != "cuda":
        return section.batches_per_step or 1
    memory = torch.cuda.get_device_properties(device).total_memory
    pixels = section.batch * data.train.image_size**2
    return max(1, int(memory / 2 / (16000 * pixels)))


def optimise(context: Context, unit: Unit) -> Payload:
    """Optimise an image batch; the artifact holds uint8 images [n, C, H, W], labels and ranks [n].

    Its random stream is seeded by the recipe's seed and the batch's number alone, so that ablations start
    from the same noise, and batches optimised together come out as if each were alone. Raises GvbsmError if a
    loss or its gradient is not finite, after writing the last good images beside the artifact.
    """
    return optimise_together(context, [unit])[0]


def optimise_together(context: Context, units: Sequence[Unit]) -> list[Payload]:
    """Optimise image batches in one forward pass a step: those of one size, fewer if memory asks for it."""
    sizes = [len(unit.options["labels"]) for unit in units]
    if (alike := sizes.count(sizes[0])) < len(units):  # only the last one can be smaller
        return [*optimise_together(context, units[:alike]), *optimise_together(context, units[alike:])]
    try:
        return _optimised(context, units)
    except (MemoryError, RuntimeError) as error:
        if len(units) == 1 or not out_of_memory(error):
            raise
    warnings.warn(
        f"{units[0].name}: {len(units)} image batches at once find no memory on {context.device}; halving "
        "(set synthesis.batches_per_step to start with fewer)",
        stacklevel=2,
    )
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(units) // 2
    return [*optimise_together(context, units[:middle]), *optimise_together(context, units[middle:])]


def _optimised(context: Context, units: Sequence[Unit]) -> list[Payload]:
    options = units[0].options
    section, seed = context.section(Synthesis, options["synthesis"]), options["seed"]
    prepared = units[0].input_list("prepared")
    source = RealData(
        context, seed, units[0].input_list("backbones"), prepared[0].read().tensors if prepared else None
    )
    generators = [generator_of(seed, "synthesis", unit.options["batch"]) for unit in units]
    places = [[torch.tensor(unit.options[name]) for name in ("labels", "ranks")] for unit in units]
    starts = [
        starting_images(section.initializer, labels, ranks, source, generator)
        for (labels, ranks), generator in zip(places, generators, strict=True)
    ]
    pixel_range = context.data.normalization.pixel_range(context.device)
    images = torch.cat(starts).to(context.device).clamp(*pixel_range)
    if section.iterations:
        labels = torch.cat([labels for labels, _ in places]).to(context.device)
        stock = _stock(context, units[0], section, images, labels, len(units))
        numbers = [unit.options["batch"] for unit in units]
        streams = [generator_of(seed, "synthesis", "real", number) for number in numbers]
        which = ["order"] if section.population.joint else ["population", *numbers]
        loop = SynthesisLoop(
            section,
            stock,
            pixel_range,
            generators,
            RealImages(source, section.augmentation, streams),
            order=generator_of(seed, "synthesis", *which),
            own=generator_of(seed, "synthesis", "callbacks", *numbers),
            ranks=torch.cat([ranks for _, ranks in places]).to(context.device),
            log_every=units[0].how["log_every"],
        )
        images = _run(context, units, loop)
    if not bool(images.isfinite().all()):
        raise GvbsmError(
            f"synthesis {units[0].name}: the images are not finite at the end; change the schedule, the "
            "parameterization or the initializer that makes them so, or lower synthesis.learning_rate"
        )
    parts = context.data.normalization.quantize(images).split(len(starts[0]))
    return [
        (dict(zip(("images", "labels", "ranks"), (part, *place), strict=True)), _meta(context))
        for part, place in zip(parts, places, strict=True)
    ]


def _meta(context: Context) -> dict[str, Any]:
    return {"classes": list(context.data.classes)}


def _run(context: Context, units: Sequence[Unit], loop: SynthesisLoop) -> Tensor:
    """Take the steps that are left; return the images. Now and then all that is needed to go on is saved."""
    checkpoint = Checkpoint(units)
    checkpoint.restore(loop)
    try:
        loop.run(*_watchers(context, units, loop.section.iterations), partial(checkpoint.save, loop))
    except NotFiniteError as error:
        parts = context.data.normalization.quantize(loop.learnt.final()).split(len(loop.labels) // len(units))
        for unit, images in zip(units, parts, strict=True):
            last = unit.path.with_name(f"{unit.key}.last-good.safetensors")
            places = {name: torch.tensor(unit.options[name]) for name in ("labels", "ranks")}
            write(last, Artifact("images", unit.key, {"images": images, **places}, _meta(context)))
        raise GvbsmError(f"{units[0].name}: {error}; the last good images are kept in {last}") from error
    checkpoint.remove()
    return loop.learnt.final()


def _watchers(
    context: Context, units: Sequence[Unit], steps: int
) -> tuple[OnStep, Callable[[int, int], None]]:
    reporter = context.reporter
    name = units[0].name if len(units) == 1 else f"{units[0].name} to {units[-1].name}"

    def on_step(step: int, networks: str, values: dict[str, float]) -> None:
        reporter.emit(Step("synthesis", name, step, steps, values, {"backbone": networks}))

    return on_step, lambda done, total: reporter.progress(f"synthesis {name}", done, total)


def _stock(
    context: Context, unit: Unit, section: Synthesis, images: Tensor, labels: Tensor, batches: int
) -> BackboneStock:
    """Return the backbones, ready to be built or loaded and to be matched against."""
    measured = {planned.input("backbone").key: planned for planned in unit.input_list("statistics")}
    trained = () if "untrained" in unit.options else unit.input_list("backbones")
    compiled = is_compiled(section, len(trained))

    def match(backbone: Unit | None, module: nn.Module, is_fresh: bool) -> MatchedBackbone:
        if is_fresh or backbone is None:  # there may be one for every step: none is worth compiling
            return MatchedBackbone(module, Matching(module, [], {}, batches), False, section.precision)
        targets = {}
        if planned := measured.get(backbone.key):
            artifact = planned.read()
            context.data.check_classes(artifact, str(planned.path))
            targets = artifact.tensors
        matching = Matching(module, section.all_matchers, targets, batches, section.ema_init, labels=labels)
        return MatchedBackbone(module, matching, compiled, section.precision)

    weights = unit.options["match_weights"]
    planned = [
        PlannedNetwork(
            backbone.name,
            member(backbone).accuracy,
            weight,
            partial(context.build, untrained(context, backbone)),
            partial(load_trained, context, backbone),
            partial(match, backbone),
        )
        for backbone, weight in zip(trained, weights, strict=bool(trained))
    ]
    for table in unit.options.get("untrained", []):
        build = partial(context.build, context.create(Backbone, {**table, "weights": None}))
        name = str(context.create(Backbone, table).full_name)
        planned.append(PlannedNetwork(name, None, 1.0, build, build, partial(match, None)))
    return BackboneStock(planned, images, labels)


def is_compiled(section: Synthesis, backbones: int) -> bool:
    """Tell whether the step is compiled: as the recipe says, or else if it pays."""
    return pays(section, backbones) if section.compile == "auto" else section.compile


def pays(section: Synthesis, backbones: int) -> bool:
    """Whether compiling is likely to pay: a minute or so a backbone is earned back over this many steps.

    Decided from the recipe alone, so that an interrupted run goes on with the same arithmetic.
    """
    return section.iterations >= COMPILE_FROM * backbones
