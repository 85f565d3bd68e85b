"""The data sets: digits, folders of pictures, IDX files, CIFAR, Tiny-ImageNet, tar shards, Hugging Face's."""

from __future__ import annotations

from gvbsm_plugins.datasets.cifar import Cifar10, Cifar100
from gvbsm_plugins.datasets.digits import Digits
from gvbsm_plugins.datasets.huggingface import HuggingFace
from gvbsm_plugins.datasets.idx import Idx
from gvbsm_plugins.datasets.imagefolder import ImageFolder
from gvbsm_plugins.datasets.tiny_imagenet import TinyImageNet
from gvbsm_plugins.datasets.webdataset import WebDataset
from gvbsm_registry import Component, hookimpl


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Digits, ImageFolder, Idx, Cifar10, Cifar100, TinyImageNet, HuggingFace, WebDataset]
