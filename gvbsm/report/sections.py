"""Makes a run's tables and figures for the page."""

from __future__ import annotations

import io
import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from gvbsm.report import figures
from gvbsm.report.figures import Figure, data_uri
from gvbsm.report.gather import Run, Sample
from gvbsm.results.scores import Scores, scores, spread
from gvbsm.results.tables import grouped, labels_of, percent

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

    run: Run
    accuracies: list[list[str]]
    scores: list[list[str]]
    accuracy: list[Figure]
    strips: list[tuple[str, list[Strip]]]
    losses: list[Figure]
    similarity: list[Figure]
    neighbours: list[Figure]
    layers: list[Figure]
    confusion: list[Figure]
    per_class: list[list[str]]
    stages: list[list[str]]


def render(run: Run, runs: int = 1) -> Page:
    """Return the tables and figures of one of `runs` runs, which share the room for pictures."""
    return Page(
        run,
        accuracy_rows(run.records),
        [score_row(score) for score in scores(run.records)],
        _accuracy(run),
        strips(run, PICTURE_BYTES // runs),
        _losses(run),
        _similarity(run),
        _neighbours(run),
        _layers(run),
        _confusion(run),
        _per_class(run),
        [_stage_row(*stage) for stage in run.stages],
    )


def accuracy_rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """Return set, labels, Top-1, best, seeds, student, IPC, image and label bytes, best set first."""
    return [
        [
            rows[0]["set"],
            labels_of(rows[0]),
            percent([row["top1"] for row in rows]),
            percent([row["best_top1"] for row in rows]),
            str(len(rows)),
            rows[0]["student"],
            "all" if rows[0]["ipc"] is None else str(rows[0]["ipc"]),
            f"{rows[0]['image_bytes']:,}",
            f"{rows[0]['label_bytes']:,}",
        ]
        for rows in grouped(records)
    ]


def score_row(score: Scores) -> list[str]:
    """Return student, IPC, HLR and IOR in points, LRS and ARS, and what to set for those that lack."""
    values = [score.student, str(score.ipc), spread(score.hlr, 100, 1), spread(score.ior, 100, 1)]
    return [*values, spread(score.lrs), spread(score.ars), ", ".join(score.missing)]


def _accuracy(run: Run) -> list[Figure]:
    if not run.records:
        return []
    rows = []
    for group in grouped(run.records):
        values = [100 * row["top1"] for row in group]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        name = f"{group[0]['set']}, {labels_of(group[0])}"
        several = len({record["student"] for record in run.records}) > 1
        name += f", {group[0]['student']}" if several else ""
        rows.append((name, group[0]["set"], statistics.fmean(values), deviation))
    told = "; ".join(f"{name} {value:.1f} %" for name, _, value, _ in rows)
    caption = "Students trained from scratch on each set; mean over seeds, lines: standard deviation."
    return [figures.bars(rows, f"Bar chart of Top-1 accuracy by training set: {told}.", caption)]


def strips(run: Run, room: int) -> list[tuple[str, list[Strip]]]:
    """Return, by class shown, the distilled images and real ones beside them, in about `room` bytes."""
    if "distilled" not in run.samples:
        return []
    found: list[tuple[str, list[Strip]]] = []
    used = 0
    for label in run.shown:
        row = [
            _strip(which, run.samples[which], label, run.classes[label])
            for which in ("distilled", "real")
            if bool((run.samples[which].labels == label).any())
        ]
        used += sum(len(strip.uri) for strip in row)
        if used > room and found:
            break
        found.append((run.classes[label], row))
    return found


def _strip(which: str, sample: Sample, label: int, name: str) -> Strip:
    from PIL import Image

    images = sample.images[sample.labels == label][:STRIP]
    image_size = images.shape[-1]
    tile = min(image_size, TILE)
    sheet = Image.new("RGBA", (len(images) * (tile + 1) - 1, tile))
    for position, image in enumerate(images):
        pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
        picture = Image.fromarray(pixels.contiguous().numpy()).convert("RGB")
        sheet.paste(
            picture.resize((tile, tile)) if tile < image_size else picture, (position * (tile + 1), 0)
        )
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=tile <= LOSSLESS_SIDE, quality=80)
    alt = f"{len(images)} {which} {'image' if len(images) == 1 else 'images'} of class {name}"
    return Strip(which, data_uri(file.getvalue(), "image/webp"), alt, len(images))


def _losses(run: Run) -> list[Figure]:
    """Loss terms over steps, weighted as added, averaged over image batches: a figure by backbone."""
    by_backbone: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for step in run.steps:
        name = step.get("labels", {}).get("backbone", "")
        # by unit: a run that was killed and went on has told some steps twice
        by_backbone.setdefault(name, {}).setdefault(step["step"], {})[step["unit"]] = step["values"]
    found = []
    for name, steps in by_backbone.items():
        chosen = sorted(steps)[:: max(1, len(steps) // POINTS)]
        terms = dict.fromkeys(
            term for units in steps.values() for values in units.values() for term in values
        )
        series = {}
        for term in (term for term in terms if term not in NOT_LOSSES):
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
        found.append(figures.lines(series, ("step", "loss"), alt, caption, logarithmic=bool(series)))
    return found


def similarity(features: Tensor) -> float:
    """Return the mean cosine similarity of all pairs of rows of [n, D]; not a number for a single row."""
    count = len(features)
    if count < 2:
        return math.nan
    total = normalize(features.double(), dim=1).sum(0).square().sum()
    return float((total - count) / (count * (count - 1)))


def _similarity(run: Run) -> list[Figure]:
    if not run.backbones:
        return []
    name = run.backbones[0][0]
    series: dict[str, list[float]] = {}
    for which, sample in run.samples.items():
        features = sample.seen[name].features
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


def _neighbours(run: Run) -> list[Figure]:
    """t-SNE of the logits of real and distilled images together (Fig. 8)."""
    if not run.backbones or "distilled" not in run.samples:
        return []
    from sklearn.manifold import TSNE

    name = run.backbones[0][0]
    parts = {which: run.samples[which] for which in ("real", "distilled")}
    logits = torch.cat([sample.seen[name].logits for sample in parts.values()])
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


def _layers(run: Run) -> list[Figure]:
    """Mean and variance of every convolution's input, distilled against real (Fig. 9)."""
    found = []
    for name, accuracy in run.backbones:
        real = run.samples["real"].seen[name]
        for what, values in (("mean", "means"), ("variance", "variances")):
            series = {}
            for which, sample in run.samples.items():
                y = getattr(sample.seen[name], values).tolist()
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
            found.append(figures.lines(series, labels, alt, caption, logarithmic, figures.SETS))
    return found


def _confusion(run: Run) -> list[Figure]:
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


def _per_class(run: Run) -> list[list[str]]:
    """Return rows of class, then Top-1 by group of records; the header row first; none if not stored."""
    groups = [rows for rows in grouped(run.records) if all(row.get("per_class") for row in rows)]
    if not groups or len(run.classes) > PER_CLASS_ROWS:
        return []
    students = len({rows[0]["student"] for rows in groups}) > 1
    header = ["class"] + [
        f"{rows[0]['set']}, {labels_of(rows[0])}" + (f", {rows[0]['student']}" if students else "")
        for rows in groups
    ]
    body = []
    for label, name in enumerate(run.classes):
        cells = [[row["per_class"][label] for row in rows] for rows in groups]
        body.append([name, *("–" if None in values else percent(values) for values in cells)])
    return [header, *body]


def _stage_row(stage: str, seconds: float | None, size: int) -> list[str]:
    return [stage, "reused" if seconds is None else f"{seconds:,.1f} s", f"{size:,}"]
