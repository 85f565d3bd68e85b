"""Vision transformers for gvbsm: statistics of the tokens that enter LayerNorms, and a small ViT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Activation, Backbone, Component, GvbsmError, Matcher, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

requires_contract = ">=2,<3"


class TokenNorm(Matcher):
    """Mean and biased variance, by feature, of what enters each LayerNorm: [D] each, over batch and tokens.

    Of tokens [B, T, D] or maps [B, H, W, D]; LayerNorms over the channels of [B, C, H, W] are left out.
    """

    name = "token_norm"

    def sites(self, model: Module) -> list[str]:
        from torch.nn import LayerNorm

        norms = [(name, m) for name, m in model.named_modules() if isinstance(m, LayerNorm)]
        return [name for name, module in norms if not type(module).__name__.endswith("2d")]

    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        tokens = activation.tensor.float().flatten(0, -2)
        return {"mean": tokens.mean(0), "var": tokens.var(0, unbiased=False)}


class TinyViT(Backbone):
    """A pre-norm ViT of `grid` × `grid` patches, whatever the image's size; its tokens are averaged."""

    name = "vit_tiny"

    grid: int = Field(4, ge=1, description="patches along each side")
    width: int = Field(64, ge=4, multiple_of=4, description="features of a token")
    depth: int = Field(4, ge=1, description="blocks")

    def build(self, classes: int, image_size: int, channels: int) -> Module:
        from timm.models.vision_transformer import VisionTransformer

        if self.weights or image_size < self.grid:
            raise GvbsmError(f"{self.name}: from {self.grid} pixels on, and no weights ({self.weights})")
        size = {"embed_dim": self.width, "depth": self.depth, "num_heads": 4}
        return VisionTransformer(image_size, image_size // self.grid, channels, classes, "avg", **size)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [TokenNorm, TinyViT]
