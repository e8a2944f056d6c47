"""SAT-6, satellite images of six kinds of land cover: the test part, from its CSV files, cached as a NumPy file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ.data.entry import Dataset, Request
from univ.data.images import TensorImages
from univ.errors import InputError
from univ.files import atomic_path

SIDE, BANDS = 28, 4  # red, green, blue, near infrared
CLASSES = ("building", "barren land", "trees", "grassland", "road", "water")
IMAGES, LABELS, CACHE = "X_test_sat6.csv", "y_test_sat6.csv", "X_test_sat6.rgb.npy"
ROWS = 2000  # read at a time: the file has 81 000 rows of 3136 numbers


def _read_csv(path: Path, columns: int, what: str) -> list[np.ndarray]:
    """The rows of a CSV file of whole numbers 0 to 255, in blocks of ROWS.

    Raises:
        FileNotFoundError: no such file.
        InputError: other columns, or other values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: SAT-6 needs {IMAGES} and {LABELS} (see --data-path)")
    import pandas as pd  # half a second, and needed here only

    blocks = []
    try:
        with pd.read_csv(path, header=None, dtype=np.int32, chunksize=ROWS) as chunks:
            for chunk in tqdm(chunks, desc=path.name, unit=f" x {ROWS} rows", leave=False):
                block = chunk.to_numpy()
                if block.shape[1] != columns:
                    raise InputError(f"{path} has {block.shape[1]} columns, expected {columns}: {what}")
                if block.min() < 0 or block.max() > 255:
                    raise InputError(f"{path} holds values from {block.min()} to {block.max()}, expected 0 to 255")
                blocks.append(block.astype(np.uint8))
    except InputError:
        raise
    except (ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} is not a CSV file of whole numbers: {str(error).splitlines()[0]}") from error
    return blocks


def read_labels(folder: Path) -> Tensor:
    """Labels (N,) int64 from the one-hot rows of y_test_sat6.csv; CLASSES names them."""
    one_hot = np.concatenate(_read_csv(folder / LABELS, len(CLASSES), f"one per class, {', '.join(CLASSES)}"))
    if not ((one_hot.sum(axis=1) == 1).all() and one_hot.max() == 1):
        raise InputError(f"{folder / LABELS}: rows must hold one 1 and otherwise 0")
    return torch.from_numpy(one_hot.argmax(axis=1))


def read_pixels(folder: Path) -> Tensor:
    """Red, green and blue of all images, (N, 3, 28, 28) uint8; the infrared band is dropped.

    Reading the text takes most of a minute, so the result is cached beside it, and read from there until the text is
    newer or was put there later, whatever its date.
    """
    source, cache = folder / IMAGES, folder / CACHE
    changed = max(source.stat().st_mtime, source.stat().st_ctime) if source.is_file() else 0
    if cache.is_file() and cache.stat().st_mtime >= changed:
        return torch.from_numpy(_read_cache(cache))
    blocks = _read_csv(source, SIDE * SIDE * BANDS, f"{SIDE} x {SIDE} pixels of {BANDS} bands")
    # row by row, pixel by pixel, band by band
    pixels = np.concatenate([block.reshape(-1, SIDE, SIDE, BANDS)[..., :3].transpose(0, 3, 1, 2) for block in blocks])
    try:
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.save(file, pixels, allow_pickle=False)
        logger.info("{:,} images of {} cached in {}", len(pixels), source, cache)
    except InputError as error:  # a folder that is not ours to write: the images are read, only not cached
        logger.warning("{}; {} will be read again next time", error, source.name)
    return torch.from_numpy(pixels)


def _read_cache(cache: Path) -> np.ndarray:
    try:
        pixels = np.load(cache, allow_pickle=False)
    except PermissionError:
        raise
    except Exception as error:  # NumPy parses the header as Python source: damage surfaces as any of a dozen types
        raise InputError(f"{cache} is damaged: remove it, and it is made again from {IMAGES}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3, SIDE, SIDE):
        raise InputError(f"{cache} holds no {SIDE}x{SIDE} images: remove it, and it is made again from {IMAGES}")
    return pixels


def open_sat6(dataset: Dataset, request: Request) -> TensorImages:
    """The 81 000 test images, enlarged for the models: to 255 and cut to 224 as ImageNet is, or to 32 as CIFAR-10.

    Raises:
        FileNotFoundError: the CSV files are not there.
        InputError: they hold something else, or not as many labels as images.
    """
    folder, size = request.path, request.image_size
    pixels, labels = read_pixels(folder), read_labels(folder)
    if len(pixels) != len(labels):
        raise InputError(f"{folder}: {len(pixels)} images in {IMAGES}, but {len(labels)} labels in {LABELS}")
    resize = size if size <= 2 * SIDE else round(size * 255 / 224)
    return TensorImages(pixels, labels, name=f"{dataset.name}/val", resize=resize, crop=size)
