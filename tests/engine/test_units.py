"""Units: keys, resuming, and independence of order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gvbsm.runtime.execution import perform
from gvbsm.runtime.seeds import seed_of
from gvbsm.runtime.units import Unit
from gvbsm_registry import Executor, GvbsmError
from gvbsm_registry.artifacts import peek, read

CALLS: list[str] = []


def work(context: Any, unit: Unit) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Draws from the global generator, as building a backbone does."""
    CALLS.append(unit.name)
    if unit.how.get("fail"):
        raise GvbsmError("out of luck")
    return {"drawn": torch.randn(3)}, {"classes": [], "summary": {"luck": 1}}


def unit(folder: Path, name: str = "a", **options: Any) -> Unit:
    return Unit("stage", name, "kind", work, {"name": name, **options}).stored_in(folder)


class Backwards(Executor):
    name = "backwards"

    def run(
        self, tasks: Sequence[Callable[[Callable[[Any], None]], Any]], on_message: Callable[[Any], None]
    ) -> Iterator[tuple[int, Any]]:
        for index in reversed(range(len(tasks))):
            torch.randn(index + 1)  # other work meanwhile
            yield index, tasks[index](on_message)


def contents(folder: Path) -> dict[str, str]:
    """The digest of every artifact's tensors and metadata, by file name."""
    return {path.name: peek(path)["digest"] for path in sorted(folder.rglob("*.safetensors"))}


def test_a_key_is_all_that_a_unit_depends_on(tmp_path):
    one = unit(tmp_path, x=1, y=[2])
    assert one.key == unit(tmp_path, y=[2], x=1).key
    other = unit(tmp_path, x=1)
    others = [
        unit(tmp_path, x=1, y=[3]),
        other,
        dataclasses.replace(one, stage="other"),
        dataclasses.replace(one, kind="other"),
        dataclasses.replace(one, inputs={"a": other}),
        dataclasses.replace(one, inputs={"b": other}),
        dataclasses.replace(one, inputs={"a": (other, other)}),
    ]
    assert len({one.key, *(other.key for other in others)}) == 8
    same = dataclasses.replace(one, name="b", path=Path("x"), how={"log_every": 3}, data_parallel=True)
    assert same.key == one.key
    assert one.path == tmp_path / f"{one.key}.safetensors"
    assert list(others[4].each_input()) == [other]
    assert list(others[6].each_input()) == [other, other]


def test_seeds_tell_their_parts_apart():
    seeds = {seed_of(), seed_of(1), seed_of("1"), seed_of(1, 2), seed_of(12), seed_of("a", 1), seed_of("a1")}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_work_is_done_once_and_seeded_by_the_recipes_seed(make_run, tmp_path):
    run, one = make_run(), unit(tmp_path / "store", seed=4)
    assert not one.done()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    CALLS.clear()
    run.execute([one])
    run.execute([one])
    assert CALLS == ["a"]
    assert one.done()
    assert torch.equal(torch.random.get_rng_state(), before)
    artifact = one.read()
    expected = torch.Generator().manual_seed(seed_of("stage", "kind", 4))
    assert torch.equal(artifact.tensors["drawn"], torch.randn(3, generator=expected))
    assert artifact.meta["provenance"]["unit"] == "a"
    assert "summary" not in artifact.meta


def test_results_do_not_depend_on_the_executor_or_its_order(make_run, tmp_path):
    results = []
    for folder, executor in (("first", None), ("second", Backwards())):
        torch.manual_seed(len(results))
        units = [unit(tmp_path / folder / "store", name) for name in "abc"]
        make_run(out=folder).execute(units, executor)
        results.append(contents(tmp_path / folder / "store"))
    assert len(results[0]) == 3
    assert results[0] == results[1]


def test_finished_units_are_kept_when_another_fails(make_run, tmp_path):
    units = [unit(tmp_path / "store", name) for name in "abc"]
    units[1] = dataclasses.replace(units[1], how={"fail": True})
    with pytest.raises(GvbsmError, match="out of luck"):
        make_run().execute(units)
    assert [one.done() for one in units] == [True, False, False]
    units[1] = dataclasses.replace(units[1], how={})
    CALLS.clear()
    make_run().execute(units)
    assert CALLS == ["b", "c"]


def test_a_broken_file_is_told_not_taken(make_run, tmp_path):
    one = unit(tmp_path / "store")
    perform(make_run().context, [one])
    raw = one.path.read_bytes()
    one.path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(GvbsmError, match="truncated or altered"):
        one.done()
    one.path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(GvbsmError, match="truncated or altered"):
        one.read()
    one.path.write_bytes(b"")
    with pytest.raises(GvbsmError, match="truncated or altered"):
        one.done()


def test_a_file_of_other_inputs_is_made_anew(make_run, tmp_path):
    path = tmp_path / "file.safetensors"
    old, new = (dataclasses.replace(unit(tmp_path, x=x), path=path) for x in (1, 2))
    perform(make_run().context, [old])
    assert not new.done()
    with pytest.raises(GvbsmError, match="other options or inputs; run the stage stage again"):
        new.read()
    make_run().execute([new])
    assert read(path).key == new.key
