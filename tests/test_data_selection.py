"""Some of a data set's images: the right ones, augmented as before, also in worker processes."""

import numpy as np
import pytest
import torch
from PIL import Image

from univ.data import open_training
from univ.data.images import TensorImages
from univ.data.loaders import Batches, TrainingBatches
from univ.data.selection import select
from univ.utils import folder2lmdb

POSITIONS = torch.tensor([5, 0, 3])


@pytest.fixture
def encoded(tmp_path):
    """Training part of six noise images in two classes."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (300, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        folder2lmdb.main(["-f", str(tmp_path), "-s", split])
    return open_training("imagenet50", tmp_path)[0]


def test_tensor_images():
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2)
    images = TensorImages(pixels, torch.arange(6), name="six", augment=print)
    chosen = select(images, POSITIONS)
    assert chosen.labels.tolist() == [5, 0, 3] and chosen.pixels[:, 0, 0, 0].tolist() == [5, 0, 3]
    assert chosen.augment is print and chosen.fingerprint != images.fingerprint


@pytest.mark.parametrize("workers", [0, 1])
def test_encoded_images(encoded, workers):
    chosen = select(encoded, POSITIONS)
    assert len(chosen) == 3 and torch.equal(chosen.labels, encoded.labels[POSITIONS])
    ((pixels, labels),) = Batches(chosen, 8, device="cpu", workers=workers)
    assert torch.equal(pixels, torch.stack([encoded[index][0] for index in POSITIONS]))
    assert torch.equal(labels, encoded.labels[POSITIONS])
    ((augmented, _),) = TrainingBatches(chosen, 3, device="cpu", workers=workers, seed=0)
    assert augmented.shape == pixels.shape and not torch.equal(augmented.sort(0).values, pixels.sort(0).values)
