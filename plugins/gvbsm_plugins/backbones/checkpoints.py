"""Weights from local files: safetensors (gvbsm's own backbones among them) and weights-only checkpoints."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gvbsm_plugins.backbones import surgery
from gvbsm_registry import GvbsmError, artifacts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

WRAPPERS = ("state_dict", "model")
MAX_WRAPPERS = 4  # bounded, for a file can hold a dict that holds itself
PREFIXES = ("module.", "_orig_mod.")
MAX_LISTED = 3


def read(path: str | Path, ignored: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the parameters and buffers that a file holds, by name, on the CPU. Nothing in it is executed.

    Files that end in .safetensors are read as such, all others as torch checkpoints. What training scripts
    wrap around a state dict is taken off: {"state_dict": …}, {"model": …}, and "module." before every key.
    Keys that begin with one of `ignored` are left out.

    Raises GvbsmError if the file is missing, broken, altered, holds anything but tensors, or needs pickle.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise GvbsmError(f'{path}: no such weights file; check `weights`, which is a path or "DEFAULT"')
    content = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    state = _unwrap(path, content)
    return {name: tensor for name, tensor in state.items() if not name.startswith(ignored)}


def load(
    model: Module, state: Mapping[str, Tensor], path: str | Path, what: str, classes: int, reset: bool
) -> None:
    """Load `state` into `model`; `path` and `what` (the model in words) are for errors.

    A first convolution for RGB is summed over the colours if the model takes grey images. With `reset` the
    model keeps its own classifier.

    Raises GvbsmError if the classifier has another number of classes than `classes`, or other keys or
    shapes do not fit, naming the first few.
    """
    state = dict(state)
    own = model.state_dict()
    _adapt_to_grey(model, state)
    for head in surgery.classifiers(model, classes):
        if reset:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}
            state |= {name: tensor for name, tensor in own.items() if name.startswith(f"{head}.")}
            continue
        weight = state.get(f"{head}.weight")
        if weight is not None and weight.ndim and len(weight) != len(own[f"{head}.weight"]):
            raise GvbsmError(
                f"{path}: its classifier {head!r} has {len(weight)} classes, {classes} are asked for; "
                "set reset_classifier = true to keep the rest and start the classifier afresh"
            )
    # Checkpoints from before BatchNorm counted its batches lack the counters, which inference never reads.
    state |= {n: t for n, t in own.items() if n.endswith("num_batches_tracked") and n not in state}
    problems = _misfits(state, own)
    if problems:
        raise GvbsmError(
            f"{path}: does not fit {what}: {'; '.join(problems)}; give the weights of this network"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise GvbsmError(f"{path}: its tensors can't be used as weights ({error})") from error


def _adapt_to_grey(model: Module, state: dict[str, Tensor]) -> None:
    first = surgery.first_conv(model)
    if first is None:
        return
    name, conv = first
    weight = state.get(f"{name}.weight")
    if weight is not None and weight.ndim == 4 and conv.in_channels == 1 and weight.shape[1] == 3:
        from timm.models import adapt_input_conv  # slow to import, and rarely needed

        state[f"{name}.weight"] = adapt_input_conv(1, weight)


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {_shape(state[name])} instead of {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = []
    for label, items in (
        ("missing keys", [name for name in own if name not in state]),
        ("unexpected keys", [name for name in state if name not in own]),
        ("wrong shapes", shapes),
    ):
        if items:
            problems.append(f"{len(items)} {label} ({_few(items)})")
    return problems


def _few(items: list[str]) -> str:
    return ", ".join(items[:MAX_LISTED]) + (", …" if len(items) > MAX_LISTED else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if {"schema", "kind", "digest"} <= set(header):
            return artifacts.read(path).tensors
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise GvbsmError(
            f"{path}: can't be read as safetensors ({error}); it is broken or of another format"
        ) from error


def _checkpoint(path: Path) -> object:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text is long, and advises to switch this protection off.
        match = re.search(r"WeightsUnpickler error: ([^\n]*)", str(error))
        why = match[1].strip().split(". ")[0] if match else "it is not a torch checkpoint"
    except Exception as error:  # a broken file can fail in zip, pickle and tensor code alike
        why = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    raise GvbsmError(
        f"{path}: can't be read as a weights-only checkpoint ({why}); nothing in it was executed; "
        "give a file made by torch.save(model.state_dict(), …), or safetensors"
    )


def _unwrap(path: Path, content: object) -> dict[str, Tensor]:
    import torch

    for _ in range(MAX_WRAPPERS):
        if isinstance(content, Mapping):
            inner = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(inner, content)
    if not isinstance(content, Mapping) or not content:
        raise GvbsmError(
            f"{path}: holds no state dict but {type(content).__name__}; save model.state_dict() into it"
        )
    odd = [str(k) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if odd:
        raise GvbsmError(
            f"{path}: is not a state dict, for {_few(odd)} is not a tensor; save model.state_dict() into it"
        )
    state: dict[str, Tensor] = dict(content)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
