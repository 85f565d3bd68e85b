"""Codecs: how soft labels are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_registry import Codec, Component, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

MAX_HALF = 65504.0


def _half(values: Tensor) -> Tensor:
    """Return the nearest float16 values; what lies beyond its range becomes its largest value."""
    return values.clamp(-MAX_HALF, MAX_HALF).half()


class Half(Codec):
    """Every logit as float16: 2K bytes a row; relative error at most 2⁻¹¹."""

    name = "fp16"

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        return {"logits": _half(logits)}

    def decode(self, parts: dict[str, Tensor], classes: int) -> Tensor:
        return parts["logits"].float()


class Byte(Codec):
    """Every logit as a signed byte times the row's scale, max |logit| / 127: K + 4 bytes a row.

    The error is at most half the scale.
    """

    name = "int8"

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        scale = logits.abs().amax(1, keepdim=True) / 127
        levels = (logits / scale.where(scale > 0, 1)).round().clamp(-127, 127)
        return {"levels": levels.char(), "scale": scale.squeeze(1)}

    def decode(self, parts: dict[str, Tensor], classes: int) -> Tensor:
        return parts["levels"].float() * parts["scale"].unsqueeze(1)


class Largest(Codec):
    """The k largest logits as float16 with their classes, and one value for all others.

    3k + 2 bytes a row, 4k + 2 of more than 256 classes, 6k + 2 of more than 32768. With k >= K it is `fp16`
    with the rows sorted.
    """

    name = "topk"

    k: int = Field(5, ge=1, description="how many classes keep a logit of their own")
    rest: Literal["mass", "mean"] = Field(
        "mass",
        description="the value of all others: their probability spread evenly (mass), or their mean logit",
    )

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        import torch

        classes = logits.shape[1]
        k = min(self.k, classes)
        # Stable, so that of equal logits the lower class is kept on every device.
        order = logits.argsort(stable=True, dim=1, descending=True)
        index, others = order[:, :k], logits.gather(1, order[:, k:])
        dtype = torch.uint8 if classes <= 256 else torch.int16 if classes <= 2**15 else torch.int32
        parts = {"values": _half(logits.gather(1, index)), "index": index.to(dtype)}
        if classes > k:
            wide = others.double()
            value = wide.logsumexp(1) - torch.tensor(float(classes - k)).log()
            parts["rest"] = _half(value if self.rest == "mass" else wide.mean(1))
        return parts

    def decode(self, parts: dict[str, Tensor], classes: int) -> Tensor:
        values = parts["values"].float()
        logits = values.new_zeros(len(values), classes)
        if "rest" in parts:
            logits += parts["rest"].float().unsqueeze(1)
        return logits.scatter_(1, parts["index"].long(), values)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Half, Byte, Largest]
