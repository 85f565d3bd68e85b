"""A run folder read as a finished run: what exporters and cards see of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from gvbsm import DistilledDataset, report
from gvbsm.results.card import examples
from gvbsm.results.contact_sheet import contact_sheet
from gvbsm.results.finished import FinishedRun
from gvbsm.results.records import read_records
from gvbsm_registry import GvbsmError


def test_it_reads_what_lies_there(make_run: Any) -> None:
    made = make_run().until("evaluation")
    (made.out / "recipe.toml").write_text(made.recipe.toml())
    run = FinishedRun(made.out)
    stored = DistilledDataset(made.out / "distilled")
    assert torch.equal(run.images, stored.images)
    assert torch.equal(run.labels, stored.labels)
    assert (run.classes, run.mean, run.std, run.key) == (stored.classes, stored.mean, stored.std, stored.key)
    baseline = DistilledDataset(made.out / "baselines" / "random")
    assert run.baseline is not None
    assert torch.equal(run.baseline[0], baseline.images)
    assert run.records == read_records(made.out)
    assert run.recipe == made.recipe.tables()


def test_an_unfinished_run_says_what_to_do(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path)
    assert not run.has_images
    assert run.baseline is None
    assert run.records == []
    for name in ("images", "labels", "meta", "classes", "mean", "std", "key"):
        with pytest.raises(GvbsmError, match=r"holds no distilled set.*gvbsm run"):
            getattr(run, name)
    with pytest.raises(GvbsmError, match=r"recipe\.toml"):
        _ = run.recipe


def test_the_card_of_a_run_opens_the_set_from_its_own_folder(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gvbsm import pipeline

    made = make_run(("name", "one|two")).until("evaluation")
    (made.out / "recipe.toml").write_text(made.recipe.toml())
    report.after_run(pipeline.report_inputs(made.opened), pytest.fail)
    text = (made.out / "README.md").read_text()
    assert "OUT" not in text
    assert "# Condensed set: one\\|two\n" in text
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(made.out)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["dataset"]) == len(FinishedRun(made.out).labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_holds_the_pixels_of_every_image(channels: int) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (5, channels, 4, 4), generator=generator).to(torch.uint8)
    sheet = pil_to_tensor(contact_sheet([images[:3], images[3:]], 8))
    assert sheet.shape == (3, 2 * 9 - 1, 3 * 9 - 1)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        tile = sheet[:, 9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
        enlarged = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert torch.equal(tile, enlarged.expand(3, -1, -1))
    assert contact_sheet([images[:1]], 2).size == (2, 2)


def test_examples_are_one_row_a_class() -> None:
    images, labels = torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.tensor([0, 0, 0, 2, 2, 2, 5, 5])
    picture = Image.open(io.BytesIO(examples(images, labels)))
    assert picture.format == "PNG"
    assert picture.size == (3 * 49 - 1, 3 * 49 - 1)
