"""Some of a data set's images as a data set of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from univ.data.entry import Images
from univ.data.images import EncodedImages, TensorImages

if TYPE_CHECKING:
    from torch import Tensor


def select(images: TensorImages | EncodedImages, positions: Tensor) -> Images:
    """The images at `positions`, in that order, augmented in training as those they come from.

    Args:
        images: what the openers of `univ.data` return.
        positions: (n,) integers.
    """
    positions = torch.as_tensor(positions, dtype=torch.int64)
    if isinstance(images, EncodedImages):
        return _Selection(images, positions)
    chosen = TensorImages(images.pixels[positions], images.labels[positions], name=images.name, augment=images.augment)
    assert images.transform_name == chosen.transform_name, "images resized on the way out are not trained on"
    return chosen


class _Selection(EncodedImages):
    """Leaves the images where they are stored and renumbers them."""

    def __init__(self, images: EncodedImages, positions: Tensor) -> None:
        super().__init__(images.name, images.transform, images.augment, fast=images.fast)
        self._images, self._positions = images, positions

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def labels(self) -> Tensor:
        return self._images.labels[self._positions]

    def record(self, index: int) -> tuple[bytes, int]:
        return self._images.record(int(self._positions[index]))

    def stored_in(self) -> Sequence[Path]:
        return self._images.stored_in()

    def labels_apart(self) -> Tensor | None:
        return self._images.labels_apart()

    @cached_property
    def fingerprint(self) -> str:
        chosen = self._positions.numpy().tobytes()
        return hashlib.sha256(self._images.fingerprint.encode() + chosen).hexdigest()[:16]

    def location(self, index: int) -> str:
        return self._images.location(int(self._positions[index]))
