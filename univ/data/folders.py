"""Pictures of one's own: `folder:PATH` is a data set, `PATH/{train,val}/<class>/*` or `PATH/{train,val}.lmdb`.

`PATH/dataset.json` says what cannot be seen from the files: which recipe trains on them, at which image size, and the
pixel statistics of the training part. It is written once, by the first training (`measure`), and read ever after.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ import files
from univ.data.entry import Dataset, Images, Request, Split
from univ.data.imagenet import open_encoded
from univ.data.images import EXTENSIONS, EncodedImages, TensorImages, read_image_file
from univ.data.lmdb import ImageFolderLMDB
from univ.data.transforms import ResizeAndCrop, SmallImageAugmentation, imagenet_transform
from univ.errors import InputError
from univ.files import schemas

PREFIX = "folder:"
RECORD = "dataset.json"
PARTS: tuple[Split, ...] = ("train", "val")
SMALL = 64  # pixels: images up to this size show the whole short side, larger ones leave out a margin as on ImageNet
CHUNK = 32  # pictures that a thread decodes at a time
NAMED = 20  # damaged pictures in a message


# --- names ----------------------------------------------------------------------------------------------------------


def is_folder(name: object) -> bool:
    """Whether a data set's name is `folder:PATH`."""
    return isinstance(name, str) and name.startswith(PREFIX)


class DatasetNames(tuple[str, ...]):
    """Names that a flag takes, `folder:PATH` for any path among them: what argparse calls choices."""

    def __new__(cls, names: Iterable[str]) -> DatasetNames:
        return super().__new__(cls, (*names, f"{PREFIX}PATH"))

    def __contains__(self, name: object) -> bool:
        return is_folder(name) or super().__contains__(name)


def path_of(name: str) -> Path:
    """The folder that `folder:PATH` names.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(name.removeprefix(PREFIX)).expanduser()
    if name == PREFIX or not path.is_dir():
        raise FileNotFoundError(f"{name}: there is no such folder")
    return path


def file_safe(name: str, taken: Iterable[str]) -> str:
    """What the results of `folder:PATH` are filed under: the folder's name, or `<name>_folder` where that is taken.

    Raises:
        InputError: there is no path, or it has no name.
    """
    path = Path(name.removeprefix(PREFIX)).expanduser().resolve()
    if name == PREFIX or not path.name:
        raise InputError(f"{name!r} names no folder: expected {PREFIX}PATH")
    stem = re.sub(r"[^\w.-]+", "_", path.name)
    return files.file_name(f"{stem}_folder" if stem in taken else stem, f"{name}:")


# --- what the files show ----------------------------------------------------------------------------------------------


def find_images(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Class names, and (path, label) of every image, in the order of torchvision's ImageFolder.

    Raises:
        FileNotFoundError: no such folder, no class folders in it, or a class without images.
        InputError: a link leads to a folder that it lies in.
    """
    classes = class_folders(folder)
    images: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(classes):
        before = len(images)
        for parent, names in sorted(_walk(str(folder / name))):
            images += [
                (f"{parent}{os.sep}{file}", label) for file in sorted(names) if file.lower().endswith(EXTENSIONS)
            ]
        if len(images) == before:
            empty.append(name)
    if empty:
        listed = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
        raise FileNotFoundError(f"no images in {len(empty)} of the class folders of {folder}: {listed}")
    return classes, images


def class_folders(folder: Path) -> list[str]:
    """Names of the classes, sorted: label i is the i-th.

    Raises:
        FileNotFoundError: no such folder, or no class folders in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"{folder} holds no class folders: images belong in {folder}/<class>/")
    return classes


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder at and below `folder`, links followed, and the names of its files."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        for link in filter(Path.is_symlink, map(Path(parent).joinpath, folders)):
            if any(link.samefile(above) for above in link.parents):
                raise InputError(f"{link} is a link to a folder that it lies in: remove it")
        yield parent, names


def stored_in(path: Path, split: str) -> Path:
    """Where a part lies: `<split>.lmdb`, which may have been made from the folder beside it, else `<split>/`.

    Raises:
        FileNotFoundError: there is neither.
    """
    for place in (path / f"{split}.lmdb", path / split):
        if place.exists():
            return place
    raise FileNotFoundError(f"{path} holds no {split}/<class>/ and no {split}.lmdb: {PREFIX}PATH needs both parts")


def read_classes(path: Path) -> list[str]:
    """Names of the classes, the same in both parts. Those of an older LMDB file, which does not say, are numbers.

    Raises:
        FileNotFoundError: a part is missing, or has no class folders.
        InputError: one class only, or other classes in the one part than in the other.
    """
    places = [stored_in(path, split) for split in PARTS]
    train, val = map(_classes_in, places)
    if alone := [
        f"only in {place}: {', '.join(sorted(set(mine) - set(other))[:5])}"
        for place, mine, other in zip(places, (train, val), (val, train))
        if set(mine) - set(other)
    ]:
        raise InputError(f"the parts of {path} differ in their classes ({'; '.join(alone)})")
    if len(train) < 2:
        raise InputError(f"{places[0]} holds one class ({train[0]}): a classifier needs two or more")
    return train


def _classes_in(place: Path) -> list[str]:
    if place.is_dir():
        return class_folders(place)
    images = ImageFolderLMDB(place)
    if images.classes is not None:
        return images.classes
    status = place.stat()
    return [str(label) for label in range(_count_labels(place, status.st_size, status.st_mtime_ns))]


@functools.lru_cache(maxsize=8)
def _count_labels(place: Path, size: int, changed: int) -> int:
    return int(ImageFolderLMDB(place).labels.max()) + 1


class ClassFolders(EncodedImages):
    """The image files of `<folder>/<class>/`, numbered and labelled as torchvision's ImageFolder does.

    Args:
        folder: holds the class folders.
        transform, name, augment, fast: see `EncodedImages`.

    Raises:
        FileNotFoundError, InputError: see `find_images`.
    """

    def __init__(
        self, folder: Path, transform: Callable, *, name: str, augment: Callable | None = None, fast: bool = False
    ) -> None:
        super().__init__(name, transform, augment, fast=fast)
        self.classes, found = find_images(folder)
        self._paths = [path for path, _ in found]
        self._labels = torch.tensor([label for _, label in found])

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def labels(self) -> Tensor:
        return self._labels

    def record(self, index: int) -> tuple[bytes, int]:
        return read_image_file(Path(self._paths[index])), int(self._labels[index])

    def location(self, index: int) -> str:
        return self._paths[index]

    def stored_in(self) -> Sequence[Path]:
        return [Path(path) for path in self._paths]


# --- opening ----------------------------------------------------------------------------------------------------------


def _transform(image_size: int, purpose: str) -> ResizeAndCrop:
    return ResizeAndCrop(image_size, image_size) if image_size <= SMALL else imagenet_transform(image_size, purpose)


def open_folder(dataset: Dataset, request: Request) -> Images:
    """A part of a folder, or what lies at another `request.path` (see `open_encoded`), encoded as it is stored.

    The 32 recipe trains on images held in memory, as on CIFAR-10.

    Raises:
        FileNotFoundError: nothing there.
        InputError: something else there, another number of classes, or labels that class folders do not need.
    """
    path = request.path
    in_batches = isinstance(dataset.augmentation, SmallImageAugmentation)  # which works on images held in memory
    transform = _transform(request.image_size, request.purpose)
    if not path.is_file() and not (path / f"{request.split}.lmdb").is_file() and (path / request.split).is_dir():
        if request.labels_path is not None:
            raise InputError(f"--labels-path: the folders in {path / request.split} are the labels")
        how = {"name": f"{dataset.name}/{request.split}", "fast": request.fast}
        images = ClassFolders(path / request.split, transform, augment=request.augmentation, **how)
        if len(images.classes) != dataset.num_classes:
            found = f"{len(images.classes)} classes, {dataset.name} has {dataset.num_classes}"
            raise InputError(f"{path / request.split} holds {found}")
    else:
        images = open_encoded(dataset, request, transform)
    return in_memory(images) if in_batches and request.purpose == "training" else images


def in_memory(images: EncodedImages) -> TensorImages:
    """The same images, decoded: uint8, 3 H W bytes each."""
    pixels = torch.cat([chunk for chunk, _ in _decode(images)])
    return TensorImages(pixels, images.labels, name=images.name, augment=images.augment)


def _decode(images: EncodedImages) -> Iterator[tuple[Tensor, list[str]]]:
    """All images, in chunks (B, 3, H, W) uint8, and what is wrong with those that a chunk lacks."""

    def decode(positions: Sequence[int]) -> tuple[Tensor, list[str]]:
        decoded, damaged = [], []
        for position in positions:
            try:
                decoded.append(images.uint8(position)[0])
            except InputError as error:
                damaged.append(str(error))
        return torch.stack(decoded) if decoded else torch.empty(0, 3, 0, 0, dtype=torch.uint8), damaged

    threads = len(os.sched_getaffinity(0))
    chunks = iter(range(first, min(first + CHUNK, len(images))) for first in range(0, len(images), CHUNK))
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(images), desc=images.name, unit="image", leave=False, disable=None) as bar,
    ):
        while several := list(itertools.islice(chunks, 4 * threads)):  # so that memory stays bounded
            for positions, found in zip(several, pool.map(decode, several)):
                yield found
                bar.update(len(positions))


# --- measuring --------------------------------------------------------------------------------------------------------


def read_record(path: Path, classes: Sequence[str]) -> schemas.FolderRecord | None:
    """What dataset.json says; None where there is none yet.

    Raises:
        InputError: it is damaged, or of other classes than the folder has now.
    """
    place = path / RECORD
    if not place.exists():
        return None
    record = schemas.read_json(place, schemas.FolderRecord)
    if record.classes != list(classes):
        before, now = (
            f"{len(names)} ({', '.join(names[:5])}{' …' * (len(names) > 5)})" for names in (record.classes, classes)
        )
        raise InputError(f"{place} was measured on other classes, {before}, than the folder has, {now}: remove it")
    return record


def measure(name: str, recipe: str, image_size: int | None = None, *, usual_size: int) -> None:
    """Write dataset.json, unless it is there: both parts are decoded once, the training part gives mean and std.

    Args:
        name: `folder:PATH`.
        recipe: built-in data set whose training settings are used, `imagenet` or `cifar10`.
        image_size: side of the square images, pixels; None takes what was measured, else `usual_size`.

    Raises:
        InputError: it was measured for another recipe or size, pictures do not decode (they are named), or the folder
            cannot be written.
        FileNotFoundError, InputError: see `read_classes`.
    """
    path = path_of(name)
    classes = read_classes(path)
    record = read_record(path, classes)
    if record is None:
        with files.locked(path / RECORD, wait=True):  # processes of one training, and trainings side by side
            record = read_record(path, classes)
            if record is None:
                record = _measure(path, recipe, image_size or usual_size, classes)
                files.write_json(path / RECORD, record.model_dump())
                mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (record.mean, record.std))
                logger.info("{}: mean {}, std {}; measured once, kept in {}", name, mean, std, path / RECORD)
    if record.recipe != recipe:
        said = f"is for the recipe of {record.recipe} ({record.image_size} pixels), not of {recipe}"
        raise InputError(f"{path / RECORD} {said}: train with {record.recipe}_training.py, or remove the file")
    if image_size not in (None, record.image_size):
        said = f"has images of {record.image_size} pixels, not {image_size}"
        raise InputError(f"{path / RECORD} {said}: leave out --image-size, or remove the file")


def _measure(path: Path, recipe: str, image_size: int, classes: list[str]) -> schemas.FolderRecord:
    """What dataset.json is to say. Mean and std are over all pixels of the training part, as evaluation sees it."""
    transform, damaged = _transform(image_size, "evaluation"), []
    sums, squares, count = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    seen = 0
    for split in PARTS:  # the other part, too: a damaged picture is to be found now, not after an epoch
        place = stored_in(path, split)
        images = (ClassFolders if place.is_dir() else ImageFolderLMDB)(place, transform, name=f"{path.name}/{split}")
        seen += len(images)
        for pixels, problems in _decode(images):
            damaged += problems
            if split == "train":
                values = pixels.to(torch.int64)
                sums += values.sum(dim=(0, 2, 3))
                squares += values.square().sum(dim=(0, 2, 3))
                count += pixels[:, 0].numel()
    if damaged:
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise InputError(f"{len(damaged)} of {seen:,} pictures cannot be read: {'; '.join(damaged[:NAMED])}{more}")
    exact = list(zip(sums.tolist(), squares.tolist()))  # Python's integers: what follows is rounded once
    mean = [total / count / 255 for total, _ in exact]
    std = [math.sqrt(count * square - total**2) / count / 255 for total, square in exact]
    if not any(std):
        raise InputError(f"the pictures of {stored_in(path, 'train')} are all of one colour: there is nothing to learn")
    std = [value or 1.0 for value in std]  # a channel that never changes is only centred
    return schemas.FolderRecord(recipe=recipe, image_size=image_size, mean=mean, std=std, classes=classes)
