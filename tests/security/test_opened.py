"""Sets, pictures, shards and manifests of strangers, and machines that lack something: one line each."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import environment, invoke, program, refused
from conftest import MakeRun, Run
from PIL import Image

import gvbsm
from gvbsm import pipeline
from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.matching import forward
from gvbsm.recipe import loading
from gvbsm.runtime import context as contexts
from gvbsm.runtime import distributed
from gvbsm.runtime.environment import open_store
from gvbsm.runtime.reporting import Reporter
from gvbsm_plugins.datasets.imagefolder import ImageFolder
from gvbsm_plugins.datasets.webdataset import WebDataset
from gvbsm_plugins.initializers.folder import list_pictures
from gvbsm_plugins.pictures.decoding import BrokenPictureError
from gvbsm_plugins.pictures.listing import read_bytes
from gvbsm_registry import Artifact, GvbsmError, Registry, StageStarted, discover, hookimpl
from gvbsm_registry.artifacts import read, write

Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


@pytest.fixture(scope="module")
def pruned() -> list[tuple[str, Any]]:
    return [("relabel.pruning", "classes"), ("synthesis.iterations", 0)]


IMAGES: list[Change] = [
    lambda tensors, meta: meta.pop("classes"),
    lambda tensors, meta: meta.update(classes=[]),
    lambda tensors, meta: meta.update(classes=[1, 2, 3]),
    lambda tensors, meta: meta.pop("mean"),
    lambda tensors, meta: meta.update(std=[0.0]),
    lambda tensors, meta: meta.update(mean=[0.1, 0.2]),
    lambda tensors, meta: meta.update(mean="x"),
    lambda tensors, meta: tensors.pop("images"),
    lambda tensors, meta: tensors.update(images=tensors["images"].float()),
    lambda tensors, meta: tensors.update(images=tensors["images"][0]),
    lambda tensors, meta: tensors.pop("labels"),
    lambda tensors, meta: tensors.update(labels=tensors["labels"] + 100),
    lambda tensors, meta: tensors.update(labels=tensors["labels"] - 1),
    lambda tensors, meta: tensors.update(labels=tensors["labels"][:2]),
]
LABELS: list[Change] = [
    *(lambda tensors, meta, count=count: meta.update(epochs=count) for count in (0, -1, 10**30, "x", None)),
    lambda tensors, meta: meta.pop("epochs"),
    lambda tensors, meta: meta.pop("images"),
    lambda tensors, meta: meta.pop("codec"),
    lambda tensors, meta: meta.update(codec=3),
    lambda tensors, meta: meta.pop("layout"),
    lambda tensors, meta: meta.pop("classes"),
    lambda tensors, meta: meta.update(pruning="x"),
    lambda tensors, meta: meta.update(first_epoch=7),
    lambda tensors, meta: tensors.pop("crop"),
    lambda tensors, meta: tensors.pop("flip"),
    lambda tensors, meta: tensors.pop("partner"),
    lambda tensors, meta: tensors.pop("logits.logits"),
    lambda tensors, meta: tensors.update(partner=tensors["partner"] + 100),
    lambda tensors, meta: tensors.update(partner=tensors["partner"][:, :3]),
    lambda tensors, meta: tensors.update(crop=tensors["crop"][:, :, :2]),
    lambda tensors, meta: tensors.update({"logits.logits": tensors["logits.logits"][:, :3]}),
]


def changed(path: Path, change: Change) -> None:
    """Write a file anew with other contents and the right digest, as whoever makes one can."""
    found = read(path)
    tensors, meta = dict(found.tensors), json.loads(json.dumps(found.meta))
    change(tensors, meta)
    write(path, Artifact(found.kind, found.key, tensors, meta))


@pytest.fixture
def labelled(make_run: MakeRun) -> tuple[Path, Registry]:
    run = make_run(("synthesis.iterations", 0)).until("relabel")
    return run.out / "distilled", run.context.registry


@pytest.mark.parametrize("change", IMAGES)
def test_images_of_strangers(change: Change, labelled: tuple[Path, Registry]) -> None:
    folder, registry = labelled
    changed(folder / "images.safetensors", change)
    with pytest.raises(GvbsmError, match=r"images\.safetensors"):
        DistilledDataset(folder, registry)


@pytest.mark.parametrize("change", LABELS)
def test_labels_of_strangers(change: Change, labelled: tuple[Path, Registry]) -> None:
    folder, registry = labelled
    changed(folder / "labels-00000.safetensors", change)

    def use() -> None:
        opened = DistilledDataset(folder, registry)
        for epoch in range(4):
            opened.set_epoch(epoch)
            for index in range(len(opened)):
                opened[index]

    with pytest.raises(GvbsmError) as error:
        use()
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["batch", "image", "partner", "logits.logits"])
@pytest.mark.parametrize("how", ["gone", "beyond"])
def test_pools_of_strangers(name: str, how: str, make_run: MakeRun, pruned: list[tuple[str, Any]]) -> None:
    run = make_run(*pruned).until("relabel")
    folder = run.out / "distilled"

    def change(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        gone = tensors.pop(name)
        if how == "beyond" and name != "logits.logits":
            tensors[name] = gone.int() + 1000

    changed(folder / "labels-00000.safetensors", change)
    with pytest.raises(GvbsmError, match="labels-00000"):
        _ = DistilledDataset(folder, run.context.registry).pool


def picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def test_pictures_changed_in_place_with_equal_size_and_time_are_seen(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            picture(tmp_path / split / name / "0.bmp")
    dataset = ImageFolder(root=tmp_path, channels=1)
    before = dataset.open("train", tmp_path / "cache")
    for path in (tmp_path / "train").rglob("*.bmp"):
        found = path.stat()
        picture(path, 200)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        assert path.stat().st_size == found.st_size
    after = dataset.open("train", tmp_path / "cache")
    assert int(after.read(torch.tensor([0])).max()) == 200
    assert after.digest != before.digest


def test_a_broken_picture_met_by_a_loaders_worker_is_told(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(BrokenPictureError("a.jpg", "is broken")))
    assert error.problem == "a.jpg: is broken"
    assert str(error) == str(BrokenPictureError("a.jpg", "is broken"))


def test_a_killed_worker_is_told() -> None:
    class Loader:
        def __iter__(self) -> Any:
            yield 1
            raise RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly")

    read_all = contexts._read(Loader())  # type: ignore[arg-type]
    assert next(read_all) == 1
    with pytest.raises(GvbsmError, match="was killed"):
        next(read_all)


def test_files_without_an_end_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("zero.png", "pipe.png"):
        with pytest.raises(GvbsmError, match="no regular file"):
            read_bytes(str(tmp_path / name))


@pytest.mark.parametrize("label", ["Infinity", "-1", "1e400", "null", "[" * 100_000])
def test_manifests_of_strangers(label: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    text = '{"classes": ["a"], "images": [{"file": "images/a.png", "label": ' + label + "}]}"
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(GvbsmError, match="manifest"):
        list_pictures(tmp_path)


def shard(path: Path, label: str, size: int | None = None) -> None:
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "PNG")
    with tarfile.open(path, "w") as tar:
        for name, content in (("0.png", data.getvalue()), ("0.cls", label.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if size is not None:
        text = bytearray(path.read_bytes())
        text[124:136] = b"%011o\0" % size
        text[148:156] = b" " * 8
        text[148:156] = b"%06o\0 " % sum(text[:512])
        path.write_bytes(text)
        os.truncate(path, size + 10_240)


def test_a_class_number_beyond_the_pictures_makes_no_list_of_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        shard(tmp_path / f"{split}.tar", "99999999")
    with pytest.raises(GvbsmError, match="class 99999999"):
        WebDataset(root=tmp_path).open("train", tmp_path / "cache")


def test_a_member_beyond_two_gibibytes_is_no_picture(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", "0", 3 * 2**30)
    shard(tmp_path / "test.tar", "0")
    with pytest.raises(GvbsmError, match=r"train\.tar.*larger than a picture"):
        WebDataset(root=tmp_path).open("train", tmp_path / "cache")


def test_a_network_that_needs_two_images_is_told_before_anything_is_trained(make_run: MakeRun) -> None:
    student = [{"use": "resnet18_small"}]
    run = make_run(("evaluation.students", student), ("evaluation.batch", 1), ("evaluation.soft", False))
    with pytest.raises(GvbsmError, match=r"batch of one image.*raise evaluation\.batch"):
        pipeline.check(run.recipe, run.context)
    pipeline.check(make_run(("evaluation.students", student), ("evaluation.batch", 3)).recipe, run.context)


def test_no_memory_outside_a_unit_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_memory(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto allocate 1 bytes")

    monkeypatch.setattr(pipeline, "open_data", no_memory)
    refused(
        invoke("run", "digits", "--out", tmp_path / "out", "--store", tmp_path / "store"), "out of memory"
    )


def test_a_full_output_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gvbsm.results.tables.recipe_listing", full)
    refused(invoke("recipes"), "can't be written")


@pytest.mark.parametrize(
    "options",
    [
        ["--images", 10**14, "--classes", 10, "--image-size", 8],
        ["--images", 100, "--classes", 10**11, "--image-size", 8],
    ],
)
def test_estimates_of_absurd_sizes(options: list[str | int]) -> None:
    result = invoke("estimate", "digits", *options)
    assert result.exit_code == 2
    assert "is not in the range" in result.stderr


def test_a_terminal_without_box_characters(tmp_path: Path) -> None:
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-m", "gvbsm", "recipes"],
        capture_output=True,
        env=environment(PYTHONIOENCODING="latin1"),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"digits" in result.stdout


def test_a_variable_of_torchrun_left_over_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(GvbsmError, match=r"RANK.*unset it"):
        distributed.start()


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    result = program("recipes", cwd=tmp_path / "gone", preexec_fn=lambda: os.rmdir(tmp_path / "gone"))
    assert result.returncode == 1
    assert "the working directory is not there any more" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_compiler_that_fails_is_told() -> None:
    def compiled(images: torch.Tensor) -> Any:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory")

    with pytest.raises(GvbsmError, match="--no-compile"):
        forward._compiled_or_told(compiled)(torch.zeros(1))


def test_an_export_into_an_empty_working_directory(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("export", finished.out, ".", "--to", "imagefolder")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "manifest.json").is_file()


def test_what_python_may_give_to_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(pipeline, "run_stages", lambda opened, until: seen.append(opened))
    for at, device in enumerate((torch.device("cpu"), "cpu")):
        given: dict[str, Any] = {"out": tmp_path / str(at), "store": tmp_path / "store", "report": False}
        gvbsm.run(tiny, device=device, overrides={"synthesis.ipc": 3}, **given)
    assert [opened.plan.recipe.synthesis.ipc for opened in seen] == [3, 3]
    for wrong in ("synthesis.ipc=1", [("synthesis.ipc",)], [3]):
        with pytest.raises(GvbsmError, match="overrides: give"):
            gvbsm.run(tiny, overrides=wrong)  # type: ignore[arg-type]
    with pytest.raises(GvbsmError, match="--out"):
        gvbsm.run(tiny, out="a\0b")


@pytest.mark.parametrize("place", ["s3://", "file:", "ab:/c", Path("s3://bucket")])
def test_half_a_url_is_no_store(place: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GvbsmError, match="neither a folder nor a whole URL"):
        open_store(place)
    assert not list(tmp_path.iterdir())


def test_a_mark_at_the_beginning_of_a_recipe(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b'\xef\xbb\xbfdata = "digits"\n')
    assert loading.load(path, registry).data.name == "digits"


def test_packages_with_names_too_long_for_a_folder(tmp_path: Path) -> None:
    refused(invoke("plugins", "new", "gvbsm-" + "a" * 300, "--kind", "matcher", "--dir", tmp_path), "name")
    assert not list(tmp_path.iterdir())


STREAMED = """
data = { use = "imagefolder", channels = 1, in_memory = false }
backbones = [{ use = "convnet", width = 8, depth = 1 }]
[synthesis]
ipc = 1
"""


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_broken_picture_of_a_stream_is_told_before_anything_is_trained(split: str, tmp_path: Path) -> None:
    data, recipe, store = tmp_path / "data", tmp_path / "r.toml", tmp_path / "store"
    for name in ("a", "b"):
        for part in ("train", "test"):
            for number in range(3):
                picture(data / part / name / f"{number}.png", 40 * number)
    recipe.write_text(STREAMED)
    broken = data / split / "b" / "2.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    run = ["run", recipe, "--data", data, "--out", tmp_path / "out", "--store", store]
    refused(invoke(*run), broken, "skip_broken")
    assert not (store / "backbones").exists()
    assert not (tmp_path / "out" / "recipe.toml").exists()
    broken.write_bytes(whole)
    opened = pipeline.open_recipe(
        loading.load(recipe, discover(), [("data.root", str(data))]), discover(), tmp_path / "out", store
    )
    pipeline.check_pictures(opened.context, store / "data")
    assert len(list((store / "data").glob("checked-*.txt"))) == 2


def test_a_locked_folder_of_the_store_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    run = make_run()
    monkeypatch.setattr(Path, "exists", locked)
    with pytest.raises(GvbsmError, match=r"Permission denied.*check the permissions"):
        run.plan.networks[0].done()


def test_a_set_below_the_home_folder(
    labelled: tuple[Path, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, registry = labelled
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(DistilledDataset("~/distilled", registry)) == len(DistilledDataset(folder, registry))


def test_a_listener_that_wants_to_end_the_program_hears_no_more(registry: Registry, tmp_path: Path) -> None:
    class Leaving:
        @hookimpl
        def gvbsm_stage_started(self, event: StageStarted) -> None:
            raise SystemExit(7)

    registry = discover()
    registry.manager.register(Leaving(), "leaving")
    reporter = Reporter(tmp_path / "log.jsonl", registry, quiet=True)
    with pytest.warns(UserWarning, match="leaving failed to take gvbsm_stage_started"):
        reporter.emit(StageStarted("measure", 1, 0))
