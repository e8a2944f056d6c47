"""What a data set is: the entry of its facts, what its opener is asked for, and the images that it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from univ.data.transforms import Channels

Split = Literal["train", "val"]
Purpose = Literal["similarity", "evaluation"]


class Images(Protocol):
    """A map-style data set of images, its labels known without decoding one of them."""

    labels: Tensor  # (N,) int64
    transform_name: str  # what happens between the stored image and the tensor, in words fit for a file name
    fingerprint: str  # equal exactly when name, part, length, transform, all images and all labels are equal

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...  # float32 (3, H, W) in [0, 1], label


@dataclass(frozen=True)
class Request:
    """Which images an opener is to open; see `open_images` and `open_training`."""

    split: Split
    path: Path | None
    image_size: int
    labels_path: Path | None = None
    purpose: Purpose | Literal["training"] = "similarity"
    augmentation: Callable | None = None  # what training sees instead of the images as they are
    fast: bool = False


@dataclass(frozen=True)
class Dataset:
    """What is known about a data set before any of its files is opened."""

    name: str
    label: str  # in figures and tables
    opener: Callable[[Dataset, Request], Images]
    num_classes: int
    image_size: int  # side of the square images that `open_images` gives by default, pixels
    default_path: Path | None  # images that models are compared on (rep.py, func.py, inversion.py --data-path)
    labels_path: Path | None = None  # labels that are kept apart from the images
    # comparison: in the study, or where the command line does not say otherwise
    comparison_split: Split = "val"
    num_compared: int | None = 10_000  # images, or all if fewer; None: all
    radii: tuple[float, ...] = ()  # L2, of the models the study compares; pixel units of [0, 1] images
    # training; a data set without architectures is only compared on
    architectures: str | None = None  # key of `models.ARCHS`: the networks that are trained on it
    compared_models: tuple[str, ...] | None = (
        None  # those the study compares; None: all of `architectures`; (): to be named
    )
    training_path: Path | None = None  # what the training scripts read (-d/--data)
    mean: Channels | None = None  # per-channel pixel mean of the training part, images in [0, 1]
    std: Channels | None = None
    augmentation: Callable | None = None
    weight_decay: float = 1e-4
    suffix: str = ".ckpt"  # of finished models

    @property
    def inverted_path(self) -> Path:
        """Folder of the inverted images, one `<model>_<eps>.pt` each."""
        return inverted_path(self.name)


def inverted_path(name: str) -> Path:
    """Folder of a data set's inverted images."""
    return Path("data") / name / "inverted"
