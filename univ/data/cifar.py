"""CIFAR-10 as one 8-bit tensor, from the files as published (cifar-10-batches-py, torchvision's layout)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from univ.data.entry import Dataset, Request
from univ.data.images import TensorImages
from univ.errors import InputError
from univ.files.unpickle import unpickle_allowed

FOLDER = "cifar-10-batches-py"
DOWNLOAD = "torchvision.datasets.CIFAR10(folder, download=True) fetches it"

BATCHES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "val": ("test_batch",),
}

# MD5 of the published files. A file with another number of images is somebody's own reduced set and is not compared.
PUBLISHED_IMAGES = 10_000
PUBLISHED_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
PIXELS = 3 * 32 * 32


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """One of the six files: pixels (n, 3, 32, 32) uint8 and labels (n,) int64.

    The files are pickles; only arrays, lists, numbers and text are rebuilt from them, and nothing in them is run.

    Raises:
        FileNotFoundError: no such file.
        InputError: a damaged file, or one of another kind.
    """
    data = path.read_bytes()
    batch = unpickle_allowed(data, what=str(path))
    if not isinstance(batch, dict):
        raise InputError(f"{path} holds a {type(batch).__name__}, expected a CIFAR-10 batch: a dict of data and labels")
    fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = fields.get("data"), fields.get("labels")
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (PIXELS,)):
        raise InputError(f"{path}: 'data' is no uint8 array of {PIXELS} pixels a row: not a CIFAR-10 batch")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise InputError(f"{path}: 'labels' is no list of classes 0 to 9: not a CIFAR-10 batch")
    if len(labels) != len(pixels):
        raise InputError(f"{path} holds {len(pixels)} images but {len(labels)} labels")
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if len(pixels) == PUBLISHED_IMAGES and md5 != PUBLISHED_MD5.get(path.name, md5):
        raise InputError(f"{path} is not the published file: damaged or changed ({DOWNLOAD})")
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels)


def open_cifar10(dataset: Dataset, request: Request) -> TensorImages:
    """The 50 000 training or 10 000 test ("val") images, in the order of the files.

    They lie in the folder `request.path`, or in `cifar-10-batches-py` within it.

    Raises:
        FileNotFoundError: no such folder or file.
        InputError: a damaged file, or one of another kind.
    """
    path = request.path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    files = [folder / name for name in BATCHES[request.split]]
    if missing := [file.name for file in files if not file.is_file()]:
        lacking = f"{', '.join(missing)} missing ({DOWNLOAD}; see --data-path, -d)"
        raise FileNotFoundError(f"no CIFAR-10 in {path}: {lacking}")
    pixels, labels = zip(*map(read_batch, files))
    return TensorImages(
        torch.cat(pixels),
        torch.cat(labels),
        name=f"{dataset.name}/{request.split}",
        resize=None if request.image_size == dataset.image_size else request.image_size,
        augment=request.augmentation,
    )
