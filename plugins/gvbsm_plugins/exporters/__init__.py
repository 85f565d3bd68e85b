"""Exporters: a condensed set in the formats of others."""

from __future__ import annotations

from gvbsm_plugins.exporters.dd_ranking import DDRanking
from gvbsm_plugins.exporters.huggingface import HuggingFaceFolder
from gvbsm_plugins.exporters.imagefolder import ImageFolderFiles
from gvbsm_registry import Component, hookimpl


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [ImageFolderFiles, HuggingFaceFolder, DDRanking]
