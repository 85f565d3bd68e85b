"""What a run takes on many GPUs: python -m benchmarks.executor_simulation [--help].

Simulates the executor: stages one after another, in each a queue of independent units, workers that take the
next one, stragglers and workers that are lost (their unit is run again from its start). The seconds of a
unit come from per-step figures, which are parameters; docs/scale.md says where the defaults come from.
"""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Scale:
    """A data set and a recipe: images, classes, images per class, backbones, steps and epochs."""

    name: str
    images: int
    classes: int
    ipc: int
    backbones: int = 5
    iterations: int = 4000
    batch: int = 100
    epochs: int = 300
    block: int = 10
    students: int = 3
    shards: int = 8


@dataclass(frozen=True)
class Costs:
    """Seconds on one GPU: of a synthesis step on one image batch, and of a thousand images otherwise."""

    step: float = 0.10
    measure: float = 0.5
    label: float = 0.3
    train: float = 0.9
    start: float = 20.0


@dataclass(frozen=True)
class Faults:
    """straggle: share of units that take `slow` times as long. lost: workers lost in an hour of work."""

    straggle: float = 0.05
    slow: float = 3.0
    lost: float = 0.01


def stages(scale: Scale, costs: Costs) -> dict[str, list[float]]:
    """Return the seconds of every unit, by stage. Backbones come with weights, so none is pretrained."""
    thousands = scale.images / 1000
    synthetic = scale.classes * scale.ipc
    batches = -(-synthetic // scale.batch)
    blocks = -(-scale.epochs // scale.block)
    views = synthetic / 1000 * scale.block * scale.backbones
    return {
        "measure": [costs.start + thousands / scale.shards * costs.measure]
        * (scale.backbones * scale.shards),
        "synthesize": [costs.start + scale.iterations * costs.step] * batches,
        "relabel": [costs.start + views * costs.label] * blocks,
        "evaluate": [costs.start + synthetic / 1000 * scale.epochs * costs.train] * scale.students,
    }


def makespan(units: list[float], workers: int, faults: Faults, chance: random.Random) -> float:
    """Return the seconds until all units are done by `workers` that each take the next one."""
    queue = sorted(units, reverse=True)
    free = [0.0] * workers
    heapq.heapify(free)
    end = 0.0
    while queue:
        now = heapq.heappop(free)
        seconds = queue.pop(0)
        seconds *= faults.slow if chance.random() < faults.straggle else 1.0
        until = chance.expovariate(faults.lost / 3600) if faults.lost else float("inf")
        if until < seconds:  # the worker is lost, another one comes; the unit goes back to the queue
            heapq.heappush(free, now + until)
            queue.insert(0, seconds)
            continue
        heapq.heappush(free, now + seconds)
        end = max(end, now + seconds)
    return end


def simulate(scale: Scale, costs: Costs, faults: Faults, workers: int, rounds: int = 20) -> float:
    """Return the median hours of a run."""
    found = []
    for seed in range(rounds):
        chance = random.Random(f"{scale.name} {scale.ipc} {workers} {seed}")
        parts = stages(scale, costs).values()
        found.append(sum(makespan(list(units), workers, faults, chance) for units in parts))
    return statistics.median(found) / 3600


def label_bytes(scale: Scale, row: float, keep: float = 1.0, view: float = 10.1) -> float:
    """Return the bytes of soft labels: `row` a row of logits, `view` a view, times what is kept."""
    return scale.classes * scale.ipc * scale.epochs * keep * (row + view)


SCALES = (
    Scale("ImageNet-1k", 1_281_167, 1000, 10),
    Scale("ImageNet-1k", 1_281_167, 1000, 50),
    Scale("ImageNet-1k", 1_281_167, 1000, 100),
    Scale("ImageNet-21k", 11_060_223, 10_450, 10),
)


@click.command()
@click.option("--step", default=Costs.step, help="Seconds of a synthesis step on one image batch.")
@click.option("--measure", default=Costs.measure, help="Seconds to measure 1000 images with one backbone.")
@click.option("--label", default=Costs.label, help="Seconds to label 1000 views with one backbone.")
@click.option("--train", default=Costs.train, help="Seconds to train a student on 1000 views.")
@click.option("--straggle", default=Faults.straggle, help="Share of units that take --slow times as long.")
@click.option("--slow", default=Faults.slow, help="How much longer a straggler takes.")
@click.option("--lost", default=Faults.lost, help="Workers lost in an hour of work of one worker.")
def main(
    step: float, measure: float, label: float, train: float, straggle: float, slow: float, lost: float
) -> None:
    """Print units, GPU hours, label bytes and hours on 1, 8 and 64 GPUs as Markdown tables."""
    costs, faults = Costs(step, measure, label, train), Faults(straggle, slow, lost)
    print("| data | IPC | units | GPU hours | 1 GPU | 8 GPUs | 64 GPUs | speed-up on 64 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for scale in SCALES:
        units = [seconds for part in stages(scale, costs).values() for seconds in part]
        hours = [simulate(scale, costs, faults, workers) for workers in (1, 8, 64)]
        cells = [f"{value:,.1f} h" for value in hours]
        total = f"{sum(units) / 3600:,.1f}"
        speed = f"{hours[0] / hours[2]:.1f}×"
        print("|", " | ".join([scale.name, str(scale.ipc), f"{len(units):,}", total, *cells, speed]), "|")
    print("\n| data | IPC | fp16, all | int8, all | int8, a tenth | topk 50, a tenth |")
    print("| --- | --- | --- | --- | --- | --- |")
    for scale in SCALES:
        place = 4 if scale.classes <= 2**15 else 6
        rows = [
            (2 * scale.classes, 1),
            (scale.classes + 4, 1),
            (scale.classes + 4, 0.1),
            (50 * place + 2, 0.1),
        ]
        cells = [f"{label_bytes(scale, row, keep) / 1e9:,.2f} GB" for row, keep in rows]
        print("|", " | ".join([scale.name, str(scale.ipc), *cells]), "|")


if __name__ == "__main__":
    main()
