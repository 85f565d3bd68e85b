"""Peak memory of streamed data against the number of images: python -m benchmarks.streaming_memory.

Synthetic pictures of 8×8 pixels, in class folders and in tar shards, made in a temporary folder and deleted.
Each row is a process of its own that opens the split, twice, and reads 4096 pictures from all over it.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import click

READ = 4096
CLASSES = 1000


def png() -> bytes:
    """Return a small picture."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def make_folders(root: Path, count: int) -> None:
    """Make `count` training pictures (links to one file) and one test picture for each class."""
    for number in range(CLASSES):
        for split in ("train", "test"):
            (root / split / f"{number:05d}").mkdir(parents=True)
        (root / "test" / f"{number:05d}" / "0.png").write_bytes(png())
    source = root / "source.png"
    for number in range(count):
        if number % 20_000 == 0:  # a file system allows so many links to one file
            source = root / f"source{number}.png"
            source.write_bytes(png())
        os.link(source, root / "train" / f"{number % CLASSES:05d}" / f"{number}.png")


def make_shards(root: Path, count: int, size: int = 10_000) -> None:
    """Make `count` training samples in shards of `size`, and one test sample for each class."""
    data = png()
    for split, most in (("train", count), ("test", CLASSES)):
        for first in range(0, most, size):
            with tarfile.open(root / f"{split}-{first // size:05d}.tar", "w") as tar:
                for number in range(first, min(first + size, most)):
                    for suffix, content in (("png", data), ("cls", str(number % CLASSES).encode())):
                        info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def child(kind: str, root: str, cache: str) -> None:
    """Open, open again and read; print the peak resident memory in MiB and both openings' seconds."""
    import torch

    from gvbsm_registry import Dataset, discover

    component = discover().create(Dataset, {"use": kind, "root": root, "image_size": 8, "in_memory": False})
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        split = component.open("train", Path(cache))
        seconds.append(time.perf_counter() - started)
    generator = torch.Generator().manual_seed(0)
    for part in torch.randint(len(split), (READ,), generator=generator).split(64):
        split.read(part)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(peak / 1024, *seconds)


@click.command()
@click.option("--count", "counts", type=int, multiple=True, default=(10_000, 50_000, 200_000))
@click.option("--data", multiple=True, default=("imagefolder", "webdataset"), help="Which data sets.")
def main(counts: tuple[int, ...], data: tuple[str, ...]) -> None:
    """Print a table: pictures, peak memory, seconds to open for the first and the second time."""
    print("| data | images | peak MiB | first opening | second opening |")
    print("| --- | --- | --- | --- | --- |")
    makers = {"imagefolder": make_folders, "webdataset": make_shards}
    for kind, make in ((kind, makers[kind]) for kind in data):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder, "data")
                root.mkdir()
                make(root, count)
                call = f"child({kind!r}, {str(root)!r}, {folder!r})"
                code = f"from benchmarks.streaming_memory import child; {call}"
                done = subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=True
                )
                peak, first, second = map(float, done.stdout.split())
                print(f"| {kind} | {count:,} | {peak:.0f} | {first:.1f} s | {second:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
