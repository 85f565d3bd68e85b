"""docs/format.md: its code replays what was labelled, and it names every file, kind and field there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from venvs import ROOT

from gvbsm import DistilledDataset
from gvbsm_registry.artifacts import peek

TEXT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


VIEWS = [
    {"use": "crop_flip_roll", "padding": 2, "roll": 3},
    {"use": "dsa", "mode": "all"},
    {"use": "rand_augment", "scale": [0.5, 1.0]},
]


@pytest.fixture(params=VIEWS, ids=lambda view: view["use"])
def out(make_run, request) -> Path:
    """A run whose views are cropped, mirrored, rolled and mixed; or coloured, turned and cut."""
    view = request.param
    changes = [("relabel.augmentation", view), ("relabel.epochs", 3), ("data.channels", 3)]
    return make_run(*changes).until("evaluation").out


def code_for(out: Path) -> list[str]:
    """The page's blocks: with gvbsm, with gvbsm of a pool, with torch alone."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return [code.replace("OUT/", f"{out}/") for code in blocks]


@pytest.mark.parametrize("pruning", ["batches", "classes"])
def test_its_code_replays_a_pool(make_run, pruning: str) -> None:
    changes = [("relabel.augmentation", "dsa"), ("relabel.epochs", 5), ("relabel.pruning", pruning)]
    out = make_run(*changes, ("relabel.keep_fraction", 0.4)).until("relabel").out
    test_it_names_every_kind_of_file_and_what_is_in_it(out)
    distilled = DistilledDataset(out / "distilled")
    _, with_gvbsm, plain = code_for(out)
    exec(with_gvbsm, {"distilled": distilled})
    names: dict = {}
    exec(plain, names)
    views, logits = names["replay"](0)
    batches = list(distilled.pooled(distilled.pool.batches))
    torch.testing.assert_close(views, torch.cat([batch[0] for batch in batches]), rtol=0, atol=1e-5)
    assert torch.equal(logits, torch.cat([batch[1] for batch in batches]))
    assert names["block"]["batch"].tolist() == [len(batch[1]) for batch in batches]


def test_its_code_replays_the_labels_with_and_without_gvbsm(out: Path) -> None:
    distilled = DistilledDataset(out / "distilled")
    with_gvbsm, _, plain = code_for(out)
    exec(with_gvbsm, {})
    names: dict = {}
    exec(plain, names)
    assert "gvbsm" not in plain.replace(str(out), "")
    for epoch in (0, 1):
        views, logits = names["replay"](epoch)
        labelled = distilled.epoch(epoch)
        expected = labelled.views.apply(distilled.normalized(), torch.arange(len(distilled)))
        torch.testing.assert_close(views, expected, rtol=0, atol=1e-5)
        assert torch.equal(logits, labelled.logits)
        assert not torch.equal(views, distilled.normalized())


def test_it_names_every_kind_of_file_and_what_is_in_it(out: Path) -> None:
    for path in out.rglob("*.safetensors"):
        header = peek(path)
        assert f"`{header['kind']}`" in TEXT
        for field in json.loads(header["meta"]):
            assert f"`{field}`" in TEXT, f"{path}: {field}"
    results = out / "results.json"
    for record in json.loads(results.read_text())["records"] if results.exists() else ():
        for field in record:
            assert f"`{field}`" in TEXT, field
    for path in out.rglob("*"):
        known = path.suffix == ".safetensors" or path.name in TEXT
        assert known, f"{path} is not in docs/format.md"
