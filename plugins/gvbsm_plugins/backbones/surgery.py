"""Small changes to other people's modules: classifier, input channels, in-place activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Conv2d, Module


def disable_inplace(model: Module) -> None:
    """Turn off every in-place activation: it would overwrite the input of a module that is observed."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # a flag of the activation, no submodule


def first_conv(model: Module) -> tuple[str, Conv2d] | None:
    """Return the convolution that sees the image (the first one registered) and its name, or None."""
    from torch.nn import Conv2d

    return next(((name, m) for name, m in model.named_modules() if isinstance(m, Conv2d)), None)


def make_grey(model: Module) -> None:
    """Let a model for RGB images take grey ones, with the output that it had for three equal channels."""
    from timm.models import adapt_input_conv
    from torch.nn import Parameter

    first = first_conv(model)
    assert first is not None, "a model for RGB images without a convolution"
    _, conv = first
    conv.weight = Parameter(adapt_input_conv(1, conv.weight.detach()))
    conv.in_channels = 1


def classifiers(model: Module, classes: int) -> list[str]:
    """Return the names of the layers that give the `classes` logits.

    timm says which; elsewhere it is the last linear layer or convolution with as many outputs.
    """
    from torch.nn import Conv2d, Linear

    modules = dict(model.named_modules())
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = [
        name for name in ([configured] if isinstance(configured, str) else configured) if name in modules
    ]
    if heads:
        return heads
    outputs = {name: m.out_features for name, m in modules.items() if isinstance(m, Linear)}
    outputs |= {name: m.out_channels for name, m in modules.items() if isinstance(m, Conv2d)}
    return [name for name in modules if outputs.get(name) == classes][-1:]


def replace_classifier(model: Module, name: str, classes: int) -> None:
    """Give the linear layer or convolution `name` fresh parameters and `classes` outputs."""
    from torch.nn import Conv2d, Linear

    old = model.get_submodule(name)
    new: Linear | Conv2d
    if isinstance(old, Linear):
        new = Linear(old.in_features, classes, bias=old.bias is not None)
    else:
        assert isinstance(old, Conv2d)
        assert old.kernel_size == (1, 1)
        new = Conv2d(old.in_channels, classes, 1, bias=old.bias is not None)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
