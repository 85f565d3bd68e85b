"""The card of a condensed set: what a run says of itself, as Markdown with example pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from gvbsm.results.contact_sheet import contact_sheet
from gvbsm.results.records import published_rows
from gvbsm.results.tables import accuracy_table, escape

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm_registry import FinishedRun

PICTURES = "examples.png"
FACTS = ("description", "reproduces", "method", "protocol")
"""Keys of a recipe that a card and a report repeat, where they say something."""
MOST_CLASSES, MOST_EACH, SMALLEST_TILE = 10, 10, 48
OPENING = """from gvbsm import DistilledDataset

dataset = DistilledDataset("distilled")  # soft labels: after set_epoch(e), or a pool where they are pruned"""
"""How to open the set from the folder of its run."""


def card(run: FinishedRun, opening: str) -> str:
    """Return the card as Markdown: what the set is, its accuracies, where it comes from, how to open it.

    opening: Python lines that open the set from where the card lies.
    """
    provenance = run.meta.get("provenance", {})
    count, channels, height, width = run.images.shape
    name = escape(str(run.recipe.get("name", "unnamed")))
    facts = {
        "images": f"{count:,} ({run.meta.get('ipc', '?')} of each of {len(run.classes):,} classes), "
        f"{height}×{width}, {'grey' if channels == 1 else 'colour'}, 8 bits",
        "condensed from": escape(str(run.meta.get("data", "unknown"))),
        "recipe": name,
        **{key: escape(str(run.recipe[key])) for key in FACTS if run.recipe.get(key)},
        "seed": str(provenance.get("seed", "unknown")),
        "made with": escape(f"gvbsm {provenance.get('gvbsm', '?')}, torch {provenance.get('torch', '?')}"),
        "key": f"`{run.key}`",
    }
    shown = [escape(label) for label in run.classes[:50]]
    more = f" and {len(run.classes) - 50:,} more" if len(run.classes) > 50 else ""
    return f"""# Condensed set: {name}

![Some images of the set: one row a class, in the order below]({PICTURES})

| | |
| --- | --- |
{"".join(f"| {key} | {value} |{chr(10)}" for key, value in facts.items())}
Classes, by label: {", ".join(shown)}{more}.

## Accuracy

{_accuracies(run)}

## Opening it

In this folder:

```python
{opening}
```
"""


def _accuracies(run: FinishedRun) -> str:
    if not run.records:
        return "Not evaluated yet."
    return (
        "Top-1 on the real test images, in percent, mean ± standard deviation over seeds; students are\n"
        "trained from scratch. `random` is as many random real images, `full` the whole training set;\n"
        "`published` are others' figures, by protocols of theirs.\n\n"
        + accuracy_table(run.records, published=published_rows(run.recipe)).markdown()
    )


def examples(images: Tensor, labels: Tensor) -> bytes:
    """Return a PNG of the first images, uint8 [N, C, H, W], of the first classes: one row a class."""
    rows = [images[labels == label][:MOST_EACH] for label in labels.unique().tolist()[:MOST_CLASSES]]
    side = images.shape[-1]
    file = io.BytesIO()
    contact_sheet(rows, side * max(1, SMALLEST_TILE // side)).save(file, "PNG", optimize=True)
    return file.getvalue()
