"""A forward pass with matching: eagerly, or traced with its matchers into one compiled graph."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import ActivationRecorder, inputs_of
from gvbsm.matching.moments import ByChannel, ByPatch
from gvbsm.matching.terms import Matching
from gvbsm_registry import GvbsmError

Precision = Literal["fp32", "bf16"]
Forward = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


class MatchedBackbone:
    """A frozen backbone in evaluation mode, with the matching terms of what it sees.

    compiled: trace model and matchers into one graph and compile it, on the first pass; without a C++
    compiler (on the CPU) the eager path is used, with a warning. precision "bf16": the model runs under
    autocast; statistics are reduced in float32 all the same.
    """

    def __init__(
        self, module: nn.Module, matching: Matching, compiled: bool = False, precision: Precision = "fp32"
    ) -> None:
        self.module, self.matching = module, matching
        self.sites, self.names = matching.sites, {term.name for term in matching.terms}
        self._recorder = ActivationRecorder(module, matching.sites, matching.groups, parts=matching.parts)
        self._precision = precision
        self._compile = compiled and can_compile(matching.device)
        self._compiled: dict[torch.Size, Forward] = {}
        self._centres: dict[str, Tensor] = {}

    def observe(
        self, images: Tensor, uniforms: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits [G·B, K], float32 at least, and the matching terms (see `Matching.step_losses`).

        labels: of the images, where they may be others than the matching was made for; see `Matching.check`.
        """
        if labels is not None:
            self.matching.check(labels)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            if self._compile:
                if images.shape not in self._compiled:
                    self._compiled[images.shape] = self._trace(images)
                logits, statistics = self._compiled[images.shape](images)
            else:
                logits, statistics = self._eager(images, uniforms)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, self.matching.step_losses(statistics, uniforms)

    def state(self) -> dict[str, Tensor]:
        """Return what a later run needs to go on with the same arithmetic: averages, centres and plans.

        A plan is, for each reduction, a patch size (0: by channel) and whether it is of parts.
        """
        centres = {f"centre/{site}": centre for site, centre in self._centres.items()}
        asked = {
            site: [[getattr(reduction, "patch_size", 0), int(part)] for reduction, part in plan]
            for site, plan in self._recorder.plans.items()
        }
        plans = {f"plan/{site}": torch.tensor(plan).view(-1, 2) for site, plan in asked.items()}
        return {**self.matching.state(), **centres, **plans}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, if anything."""
        self.matching.restore(state)
        self._centres = {
            name.removeprefix("centre/"): centre.to(self.matching.device)
            for name, centre in state.items()
            if name.startswith("centre/")
        }
        for site, plan in self._recorder.plans.items():
            for size, part in state.get(f"plan/{site}", torch.empty(0, 2)).tolist():
                plan[ByPatch(int(size)) if size else ByChannel(), bool(part)] = None

    def _eager(self, images: Tensor, uniforms: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run as it is; what is dropped is not computed (but on a GPU, where asking would cost more)."""
        skipped = self.matching.skipped(uniforms) if uniforms.device.type == "cpu" else None
        if skipped is not None:
            terms = zip(self.matching.terms, skipped, strict=True)
            asked = {site for term, leave in terms for site in term.sites if site not in leave}
            self._recorder.idle = set(self.sites) - asked
        return self._forward(images, self._recorder, skipped)

    def _forward(
        self, images: Tensor, recorder: ActivationRecorder, skipped: list[set[str]] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        with recorder:
            logits = self.module(images)
        return logits, self.matching.statistics_of(recorder.activations(), skipped)

    def _trace(self, images: Tensor) -> Forward:
        """Trace the forward pass into primitive operations, reductions included, and compile it as a whole.

        Tracing by execution, so that a matcher may be any Python code; compiling happens on the first call.
        The statistics are taken about the channels' means of these first images.
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        images = images.detach()
        if images.device.type == "cpu":  # of a CUDA that is not there, and not asked for
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        with torch.no_grad():
            if not self._centres:
                seen = inputs_of(self.module, self.sites, images)
                self._centres = {site: _centre(activation) for site, activation in seen.items()}
            groups, parts = self.matching.groups, self.matching.parts
            recorder = ActivationRecorder(
                self.module, self.sites, groups, fused=False, centres=self._centres, parts=parts
            )
            self._forward(images, recorder)  # tells it what is asked for, and makes the constants
            graph = make_fx(lambda x: self._forward(x, recorder))(images)
        return _compiled_or_told(torch.compile(graph))


def _centre(activation: Tensor) -> Tensor:
    """Return the mean of each channel of [N, C, *space], at least float32: [C, 1, ...]."""
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32))
    means = wide.transpose(0, 1).flatten(1).mean(1)
    return means.reshape(means.shape + (1,) * (activation.ndim - 2))


def _compiled_or_told(compiled: Forward) -> Forward:
    """Return a compiled function whose failing to compile, on its first call, is a GvbsmError."""

    def call(images: Tensor) -> Any:
        try:
            return compiled(images)
        except Exception as error:
            compiler = type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
            if not compiler and not isinstance(error, OSError):
                raise
            why = " ".join(str(error).split())[:200]
            raise GvbsmError(
                f"the synthesis step can't be compiled ({type(error).__name__}: {why}); see that the C++ "
                "compiler works and TORCHINDUCTOR_CACHE_DIR can be written, or pass --no-compile"
            ) from error

    return call


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs; warns if not."""
    if device.type != "cpu" or shutil.which("g++") or shutil.which("clang++"):
        return True
    warnings.warn(
        "no C++ compiler (g++) was found, so synthesis runs eagerly; install one, or pass --no-compile",
        stacklevel=2,
    )
    return False
