"""The card of a condensed set: what a run folder says of itself, as Markdown with example pictures."""

from __future__ import annotations

import io
import json
import re
import statistics
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.artifacts import Artifact, read, replacing, write_text
from gvbsm_registry.errors import GvbsmError

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = "examples.png"
MOST_CLASSES, MOST_EACH = 10, 10


def write_card(run: Path, destination: Path, front: str = "", pictures: str = PICTURES) -> None:
    """Write README.md and example pictures for the run folder `run` into `destination`.

    front: text before the card, such as a YAML header. Raises GvbsmError if the run has no distilled set.
    """
    artifact = distilled_set(run)
    with replacing(destination / pictures) as temporary:
        temporary.write_bytes(examples(artifact.tensors["images"], artifact.tensors["labels"]))
    write_text(destination / "README.md", front + card(run, artifact, pictures))


def distilled_set(run: Path) -> Artifact:
    """Return the distilled set of a run folder; raises GvbsmError if the run is not so far."""
    path = run / "distilled" / "images.safetensors"
    if not path.is_file():
        raise GvbsmError(f"{run}: holds no distilled set ({path} is missing); finish it with 'gvbsm run'")
    return read(path, "distilled")


def records_of(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's results.json; none if it has not been evaluated."""
    try:
        return list(json.loads((run / "results.json").read_text(encoding="utf-8"))["records"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise GvbsmError(
            f"{run / 'results.json'}: can't be read ({error}); evaluate the run again"
        ) from error


def card(run: Path, artifact: Artifact, pictures: str = PICTURES) -> str:
    """Return the card as Markdown: what the set is, its accuracies, where it comes from, how to open it."""
    meta, images = artifact.meta, artifact.tensors["images"]
    classes, provenance = meta["classes"], meta.get("provenance", {})
    count, channels, height, width = images.shape
    recipe = _recipe(run)
    name = escape(str(provenance.get("recipe", recipe.get("name", "unnamed"))))
    facts = {
        "images": f"{count:,} ({meta.get('ipc', '?')} of each of {len(classes):,} classes), "
        f"{height}×{width}, {'grey' if channels == 1 else 'colour'}, 8 bits",
        "condensed from": escape(str(meta.get("data", "unknown"))),
        "recipe": name,
        "seed": str(provenance.get("seed", "unknown")),
        "reproduces": escape(str(recipe.get("reproduces", "") or "nothing stated")),
        "made with": escape(f"gvbsm {provenance.get('gvbsm', '?')}, torch {provenance.get('torch', '?')}"),
        "key": f"`{artifact.key}`",
    }
    told = [escape(str(label)) for label in classes[:50]]
    more = f" and {len(classes) - 50:,} more" if len(classes) > 50 else ""
    return "\n".join(
        [
            f"# Condensed set: {name}",
            "",
            f"![Some images of the set: one row a class, in the order below]({pictures})",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            f"Classes, by label: {', '.join(told)}{more}.",
            "",
            "## Accuracy",
            "",
            accuracy_markdown(records_of(run)),
            "",
            "## Opening it",
            "",
            "```python",
            "from gvbsm import DistilledDataset",
            "",
            'dataset = DistilledDataset("OUT/distilled")  # set_epoch(e) makes items soft-labelled',
            "```",
            "",
        ]
    )


def accuracy_markdown(records: list[dict[str, Any]]) -> str:
    """Return Top-1 on real test images by set, labels and student as a Markdown table."""
    if not records:
        return "Not evaluated yet."
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (*(record[name] for name in ("set", "labels", "ipc", "student")), record.get("augmented", True))
        groups.setdefault(key, []).append(record)
    lines = [
        "Top-1 on the real test images, in percent, mean ± standard deviation over seeds; students are",
        "trained from scratch. `random` is as many random real images, `full` the whole training set.",
        "",
        "| set | labels | images per class | student | Top-1 % | seeds | image bytes | label bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (which, labels, ipc, student, augmented), rows in groups.items():
        values = [100 * row["top1"] for row in rows]
        told = f"{statistics.fmean(values):.1f}"
        told += f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        kind = labels if augmented else f"{labels}, plain"
        cells = [which, kind, "all" if ipc is None else ipc, student, told, len(rows)]
        cells += [f"{rows[0]['image_bytes']:,}", f"{rows[0]['label_bytes']:,}"]
        lines.append(f"| {' | '.join(escape(str(cell)) for cell in cells)} |")
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return `text` so that Markdown and HTML show it as it is, on one line."""
    one = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", one)


def examples(images: Tensor, labels: Tensor) -> bytes:
    """Return a PNG of the first images, uint8 [N, C, H, W], of the first classes: one row a class."""
    import torch
    from PIL import Image

    present = labels.unique().tolist()[:MOST_CLASSES]
    rows = [images[labels == label][:MOST_EACH] for label in present]
    channels, height, width = images.shape[1:]
    most = max(len(row) for row in rows)
    sheet = torch.full(
        (channels, len(rows) * (height + 1) - 1, most * (width + 1) - 1), 255, dtype=torch.uint8
    )
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + 1), c * (width + 1)
            sheet[:, top : top + height, left : left + width] = image
    pixels = sheet[0] if channels == 1 else sheet.permute(1, 2, 0)
    picture = Image.fromarray(pixels.contiguous().numpy())
    factor = max(1, 48 // height)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _recipe(run: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
