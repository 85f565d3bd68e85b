"""Makes a run's tables and figures for the page."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from gvbsm.report import figures
from gvbsm.report.figures import Figure, data_uri
from gvbsm.report.gather import RunFacts, Sample
from gvbsm.results.contact_sheet import contact_sheet
from gvbsm.results.records import grouped, labels_of, mean_and_deviation, mean_text
from gvbsm.results.tables import Table, accuracy_table, score_table
from gvbsm.terminal import duration, size

POINTS = 250
STRIP, TILE = 10, 64
LOSSLESS_SIDE = 40
PICTURE_BYTES = 1_000_000
PER_CLASS_ROWS = 100
NOT_LOSSES = ("total", "learning_rate")


@dataclass(frozen=True)
class Strip:
    """One class's images in a row: what set they are of, a data URI, alternative text, how many there are."""

    which: str
    uri: str
    alt: str
    count: int


@dataclass(frozen=True)
class Page:
    """Everything that the template shows of one run."""

    run: RunFacts
    accuracies: Table
    scores: Table
    accuracy: list[Figure]
    strips: list[tuple[str, list[Strip]]]
    losses: list[Figure]
    similarity: list[Figure]
    neighbours: list[Figure]
    layers: list[Figure]
    confusion: list[Figure]
    per_class: Table | None
    stages: Table


def render(run: RunFacts, colours: Mapping[str, str], runs: int = 1) -> Page:
    """Return the tables and figures of one of `runs` runs, which share the room for pictures.

    colours: of loss terms, see `term_colours`.
    """
    return Page(
        run,
        accuracy_table(run.records, published=run.published),
        score_table({run.name: run.records}),
        _accuracy(run),
        strips(run, PICTURE_BYTES // runs),
        _losses(run, colours),
        _similarity(run),
        _neighbours(run),
        _layers(run),
        _confusion(run),
        _per_class(run),
        _stages(run),
    )


def term_colours(runs: Sequence[RunFacts]) -> dict[str, str]:
    """Return a colour for each loss term of all runs of a report: the same in each of its figures."""
    terms = dict.fromkeys(term for run in runs for step in run.steps for term in step["values"])
    losses = [term for term in terms if term not in NOT_LOSSES]
    return {term: figures.PALETTE[at % len(figures.PALETTE)] for at, term in enumerate(losses)}


def _accuracy(run: RunFacts) -> list[Figure]:
    if not run.records:
        return []
    several = len({record["student"] for record in run.records}) > 1
    rows = []
    for group in grouped(run.records):
        mean, deviation = mean_and_deviation(100 * record["top1"] for record in group)
        rows.append((_training(group[0], several), group[0]["set"], mean, deviation))
    percents = "; ".join(f"{name} {value:.1f} %" for name, _, value, _ in rows)
    caption = "Students trained from scratch on each set; mean over seeds, lines: standard deviation."
    return [figures.bars(rows, f"Bar chart of Top-1 accuracy by training set: {percents}.", caption)]


def _training(record: Mapping[str, Any], several: bool) -> str:
    """Return what a student was trained on, and which if there are `several`."""
    return f"{record['set']}, {labels_of(record)}" + (f", {record['student']}" if several else "")


def strips(run: RunFacts, room: int) -> list[tuple[str, list[Strip]]]:
    """Return, by class shown, the distilled images and real ones beside them, in about `room` bytes."""
    if "distilled" not in run.samples:
        return []
    shown: list[tuple[str, list[Strip]]] = []
    used = 0
    for label in run.shown:
        row = [
            _strip(which, run.samples[which], label, run.classes[label])
            for which in ("distilled", "real")
            if bool((run.samples[which].labels == label).any())
        ]
        used += sum(len(strip.uri) for strip in row)
        if used > room and shown:
            break
        shown.append((run.classes[label], row))
    return shown


def _strip(which: str, sample: Sample, label: int, name: str) -> Strip:
    images = sample.images[sample.labels == label][:STRIP]
    tile = min(images.shape[-1], TILE)
    file = io.BytesIO()
    contact_sheet([images], tile).save(file, "WEBP", lossless=tile <= LOSSLESS_SIDE, quality=80)
    alt = f"{len(images)} {which} {'image' if len(images) == 1 else 'images'} of class {name}"
    return Strip(which, data_uri(file.getvalue(), "image/webp"), alt, len(images))


def _losses(run: RunFacts, colours: Mapping[str, str]) -> list[Figure]:
    """Loss terms over steps, weighted as added, averaged over image batches: a figure by backbone."""
    by_backbone: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for step in run.steps:
        name = step.get("labels", {}).get("backbone", "")
        # by unit: a run that was killed and went on has told some steps twice
        by_backbone.setdefault(name, {}).setdefault(step["step"], {})[step["unit"]] = step["values"]
    drawn = []
    for name, steps in by_backbone.items():
        chosen = sorted(steps)[:: max(1, len(steps) // POINTS)]
        series = {}
        for term in colours:
            pairs = [
                (step, statistics.fmean(values.get(term, 0.0) for values in steps[step].values()))
                for step in chosen
            ]
            pairs = [(step, value) for step, value in pairs if value > 0]
            if pairs:
                series[term] = ([step for step, _ in pairs], [value for _, value in pairs])
        spans = "; ".join(f"{term} from {y[0]:.3g} to {y[-1]:.3g}" for term, (_, y) in series.items())
        alt = f"Loss terms over synthesis steps with backbone {name}: {spans or 'all zero'}."
        caption = f"{name}: loss terms, weighted as added (a term of 0 is not drawn)."
        axes = ("step", "loss")
        drawn.append(figures.lines(series, axes, alt, caption, colours, logarithmic=bool(series)))
    return drawn


def similarity(features: Tensor) -> float:
    """Return the mean cosine similarity of all pairs of rows of [n, D]; not a number for a single row."""
    count = len(features)
    if count < 2:
        return math.nan
    total = normalize(features.double(), dim=1).sum(0).square().sum()
    return float((total - count) / (count * (count - 1)))


def _similarity(run: RunFacts) -> list[Figure]:
    if not run.backbones:
        return []
    name = run.backbones[0][0]
    series: dict[str, list[float]] = {}
    for which, sample in run.samples.items():
        features = sample.responses[name].features
        values = [similarity(features[sample.labels == label]) for label in run.shown]
        if not all(math.isnan(value) for value in values):
            series[which] = values
    if set(series) <= {"real"}:  # one image a class has no pairs
        return []
    means = "; ".join(
        f"{which} {statistics.fmean(v for v in values if not math.isnan(v)):.3f}"
        for which, values in series.items()
    )
    alt = f"Bar chart of mean cosine similarity within each class, on average: {means}."
    caption = f"Mean over pairs of one class's images, on the features of {name}. Lower: more diverse."
    names = [run.classes[label] for label in run.shown]
    return [figures.grouped_bars(names, series, "cosine similarity", alt, caption)]


def _neighbours(run: RunFacts) -> list[Figure]:
    """t-SNE of the logits of real and distilled images together (Fig. 8)."""
    if not run.backbones or "distilled" not in run.samples:
        return []
    from sklearn.manifold import TSNE

    name = run.backbones[0][0]
    parts = {which: run.samples[which] for which in ("real", "distilled")}
    logits = torch.cat([sample.responses[name].logits for sample in parts.values()])
    if len(logits) < 10:
        return []
    perplexity = min(30.0, (len(logits) - 1) / 4)
    start = "pca" if min(logits.shape) > 1 else "random"
    maps = TSNE(perplexity=perplexity, init=start, max_iter=500, random_state=0).fit_transform(logits.numpy())
    split = torch.from_numpy(maps).split([len(sample.labels) for sample in parts.values()])
    position = {label: at for at, label in enumerate(run.shown)}
    points = {
        which: (places, torch.tensor([position[int(label)] for label in sample.labels]))
        for (which, sample), places in zip(parts.items(), split, strict=True)
    }
    counts = " and ".join(f"{len(sample.labels)} {which}" for which, sample in parts.items())
    alt = f"Scatter plot, t-SNE of the logits that {name} gives {counts} images, coloured by class."
    caption = f"t-SNE of {name}'s logits. Dots: real images; diamonds: distilled ones. Axes have no unit."
    return [figures.scatter(points, [run.classes[label] for label in run.shown], alt, caption)]


def _layers(run: RunFacts) -> list[Figure]:
    """Mean and variance of every convolution's input, distilled against real (Fig. 9)."""
    drawn = []
    for name, accuracy in run.backbones:
        real = run.samples["real"].responses[name]
        for what, values in (("mean", "means"), ("variance", "variances")):
            series = {}
            for which, sample in run.samples.items():
                y = getattr(sample.responses[name], values).tolist()
                series[which] = (list(range(1, len(y) + 1)), y)
            gaps = []
            for which, (_, y) in series.items():
                if which != "real":
                    likeness = cosine_similarity(torch.tensor(y), getattr(real, values).float(), 0)
                    gaps.append(f"{which} against real: cosine {float(likeness):.3f} over layers")
            alt = f"Line chart: {what} of each convolution's input in {name}. {'; '.join(gaps)}."
            caption = f"{name} ({accuracy:.1%} on real images): {what} of each convolution's input."
            logarithmic = what == "variance" and all(min(y) > 0 for _, y in series.values())
            labels = ("convolution", what)
            drawn.append(figures.lines(series, labels, alt, caption, figures.SETS, logarithmic))
    return drawn


def _confusion(run: RunFacts) -> list[Figure]:
    if run.confusion is None:
        return []
    who, counts = run.confusion
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    wrong = shares.clone().fill_diagonal_(0)
    row, column = divmod(int(wrong.argmax()), len(shares))
    worst = f"{run.classes[row]} taken for {run.classes[column]} in {float(wrong[row, column]):.0%} of cases"
    right = float(counts.trace() / counts.sum())
    alt = f"Confusion matrix of student {who}: {right:.1%} on the diagonal; the most frequent error: {worst}."
    caption = f"Student {who}, trained on the distilled set with soft labels; percent of each true class."
    return [figures.heat(shares, run.classes, alt, caption)]


def _per_class(run: RunFacts) -> Table | None:
    """Return Top-1 by class (rows) and training (columns); None if it is not stored."""
    groups = [group for group in grouped(run.records) if all(record.get("per_class") for record in group)]
    if not groups or len(run.classes) > PER_CLASS_ROWS:
        return None
    several = len({group[0]["student"] for group in groups}) > 1
    rows = []
    for label, name in enumerate(run.classes):
        values = [[record["per_class"][label] for record in group] for group in groups]
        rows.append([name, *("–" if None in row else mean_text(row) for row in values)])
    header = ["class", *(_training(group[0], several) for group in groups)]
    return Table("Top-1 by class, %", header, rows)


def _stages(run: RunFacts) -> Table:
    rows = [
        [stage, "reused" if seconds is None else duration(seconds), size(count)]
        for stage, seconds, count in run.stages
    ]
    return Table("Stages", ["stage", "time", "bytes on the disk"], rows)
