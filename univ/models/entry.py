"""What an architecture is: how to build it, where it is read, which layer classifies, whose weights it may have."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

HEAD_INPUT = "head"
"""The `Arch.node` of a network whose representation is the input of its head, pooled if that is a convolution."""

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Arch:
    """How to build a network and where its representation is read. Module names are those within the network."""

    build: Callable[[int | None], nn.Module]  # number of classes -> network, its weights random or its own
    head: str | None  # dotted name of the layer that classifies; None: found by running the network once
    node: str = HEAD_INPUT  # dotted name of the module whose output is the representation, or HEAD_INPUT
    pool: bool = False  # average the node's output over space; otherwise it is flattened
    mean: Channels | None = None  # pixel statistics a new model normalises with; None: those of its training set
    std: Channels | None = None
    input_size: int | None = None  # side of the images, pixels; None: that of the training set
    # pretrained weights, of those that libraries and hubs know
    weights: Callable[[], Path] | None = None  # finds or fetches the file
    num_classes: int | None = None  # that the weights have
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None  # as released -> its own
    brings_weights: bool = False  # a built network is trained already
    code: Path | None = None  # the user's file that builds it


def split_seed(arch: str) -> tuple[str, int | None]:
    """`resnet50@1` is resnet50 trained with seed 1; the seed is None where the name has none.

    In `hub:USER/REPO@REVISION` the part after the @ is the hub's.
    """
    found = None if arch.startswith("hub:") else re.fullmatch(r"(.+)@(\d{1,18})", arch)
    return (found[1], int(found[2])) if found else (arch, None)


def seeded(arch: str, seed: int) -> str:
    """The name of an architecture trained with a seed; the plain one for seed 0.

    >>> seeded("resnet50", 1), seeded("resnet50", 0)
    ('resnet50@1', 'resnet50')
    """
    return f"{arch}@{seed}" if seed else arch
