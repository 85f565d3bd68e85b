"""What choosing the images before step 0 takes, timed on a trial's part of the data."""

from __future__ import annotations

import torch

from gvbsm.estimate.trial import Trial
from gvbsm.runtime.data import Data
from gvbsm.stages.image_sets import image_batches
from gvbsm.stages.real_images import RealData
from gvbsm_registry import Initializer


def choosing(trial: Trial, data: Data, initializer: Initializer) -> float:
    """Return the seconds that an initializer takes for all image batches of the trial's recipe.

    Timed are its preparation, and one image of one class; both are scaled by what it looks at, see
    `Initializer.looks_at`.
    """
    part = trial.context.data.train
    networks = trial.plan.backbones if initializer.uses_networks else []
    source = RealData(trial.context, trial.recipe.seed, networks)
    if networks:
        len(source.committee)  # loaded once, whatever the number of images
    counts = torch.bincount(part.labels, minlength=len(data.classes))
    present = int((counts > 0).sum())
    of_class = round(len(part) / present)
    scale = initializer.looks_at(round(len(data.train) / len(data.classes))) / initializer.looks_at(of_class)
    seconds = 0.0
    if type(initializer).prepare is not Initializer.prepare:
        prepared = trial.seconds(lambda: source.prepared.update(initializer.prepare(source)))
        seconds += prepared * scale * len(data.classes) / present
    first = counts.argmax().reshape(1)
    one = trial.seconds(
        lambda: initializer.images(first, torch.zeros_like(first), source, torch.Generator().manual_seed(0))
    )
    batches = image_batches(len(data.classes), trial.recipe.synthesis)
    return seconds + one * scale * sum(len(set(labels)) for labels, _ in batches)
