"""Makes a trained network ready to be run without learning any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with constant statistics: one multiply-add by channel, whose gradient is one product.

    torch's own reduces the gradient for the weight and the bias even where neither is wanted.
    """

    scale: Tensor
    offset: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return γ (x − μ) / √(σ² + ε) + β of [N, C, H, W]; under autocast as torch does it."""
        if input.dtype != self.scale.dtype:
            return super().forward(input)
        return torch.addcmul(self.offset, input, self.scale)


def freeze(module: nn.Module) -> nn.Module:
    """Freeze a network in place, in evaluation mode: the same results up to rounding, sooner.

    On a CPU it is put into the memory layout that its convolutions are a quarter faster in (channels last),
    unless there are GroupNorms, which lose more there than the convolutions gain.
    """
    module.requires_grad_(False).eval()
    for part in module.modules():
        if type(part) is nn.BatchNorm2d and part.running_var is not None:
            _fold(part)
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    if on_cpu and not any(isinstance(part, nn.GroupNorm) for part in module.modules()):
        module.to(memory_format=torch.channels_last)
    return module


def use_batch_statistics(module: nn.Module) -> nn.Module:
    """Make a frozen network's BatchNorm go by the statistics of its batch, as in training; return it.

    The running statistics stay as they are; nothing else, such as dropout, is as in training.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if isinstance(part, FrozenBatchNorm2d):
                object.__setattr__(part, "__class__", nn.BatchNorm2d)
            part.training = True  # not train(), which a norm with other parts inside would hand on
            part.track_running_stats = False
    return module


def _fold(norm: nn.BatchNorm2d) -> None:
    """Turn a BatchNorm into a FrozenBatchNorm2d; hooks and names stay."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    offset = -norm.running_mean.double() * scale
    if norm.bias is not None:
        offset = offset + norm.bias.double()
    dtype = norm.running_var.dtype
    norm.register_buffer("scale", scale.to(dtype)[:, None, None], persistent=False)
    norm.register_buffer("offset", offset.to(dtype)[:, None, None], persistent=False)
    norm.__class__ = FrozenBatchNorm2d
