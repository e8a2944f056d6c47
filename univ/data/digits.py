"""scikit-learn's handwritten digits as 3x32x32 images: real data that need no download."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from univ.data.entry import Dataset, Request
from univ.data.images import TensorImages

NUM_TEST = 360  # of 1797
SPLIT_SEED = 0


@functools.cache
def _arrays() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """All pixels (1797, 3, 32, 32) uint8, all labels, and the positions of each part in ascending order."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = torch.from_numpy(digits.images / 16).float()[:, None]  # stored as 0 to 16
    enlarged = functional.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    pixels = (enlarged * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=NUM_TEST, stratify=digits.target, random_state=SPLIT_SEED
    )
    parts = {"train": torch.from_numpy(np.sort(train)), "val": torch.from_numpy(np.sort(test))}
    return pixels, torch.from_numpy(digits.target), parts


def open_digits(dataset: Dataset, request: Request) -> TensorImages:
    """1437 training ("train") or 360 test ("val") images, each class in proportion; the split never changes.

    The 8x8 originals (0 to 16) are enlarged bilinearly, rounded to 8 bits and repeated over three channels.
    """
    pixels, labels, parts = _arrays()
    resize = None if request.image_size == dataset.image_size else request.image_size
    part, name = parts[request.split], f"{dataset.name}/{request.split}"
    return TensorImages(pixels[part], labels[part], name=name, resize=resize)
