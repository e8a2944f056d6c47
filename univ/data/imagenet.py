"""ImageNet and its subsets: one LMDB file per part, or the validation images as files in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from univ.data.entry import Dataset, Request
from univ.data.images import EXTENSIONS, EncodedImages, read_image_file
from univ.data.indices import read_labels
from univ.data.lmdb import ImageFolderLMDB
from univ.data.transforms import imagenet_transform
from univ.errors import InputError


class ImageFiles(EncodedImages):
    """The image files of one folder, sorted by name, with their labels in a file of their own.

    Args:
        folder: holds the files; sub-folders are not searched.
        labels_path: one label per image, in the order of the sorted names. Where there is no such file, images are
            given out with label -1, and asking for `labels` is an error: similarity needs none.
        transform, name, fast: see `EncodedImages`.

    Raises:
        InputError: no images, or not as many labels as images.
    """

    def __init__(
        self,
        folder: Path | str,
        labels_path: Path | str | None,
        transform: Callable | None = None,
        *,
        name: str,
        fast: bool = False,
    ) -> None:
        super().__init__(name, transform, fast=fast)
        self.folder = Path(folder)
        self._labels_path = labels_path
        self._names = sorted(path.name for path in self.folder.iterdir() if path.suffix.lower() in EXTENSIONS)
        if not self._names:
            raise InputError(f"{folder} holds no image files (class folders are for univ/utils/folder2lmdb.py)")
        self._labels: Tensor | None = None
        if labels_path is not None and Path(labels_path).exists():
            self._labels = read_labels(labels_path, len(self._names))

    def __len__(self) -> int:
        return len(self._names)

    @property
    def labels(self) -> Tensor:
        """(N,) int64.

        Raises:
            FileNotFoundError: there is no label file.
        """
        if self._labels is None:
            raise FileNotFoundError(
                f"no labels for the images in {self.folder}: {self._labels_path} (see --labels-path)"
            )
        return self._labels

    def stored_in(self) -> Sequence[Path]:
        """All the files, in the order of the images."""
        return [self.folder / name for name in self._names]

    def labels_apart(self) -> Tensor | None:
        """The labels, if there is a label file."""
        return self._labels

    def location(self, index: int) -> str:
        """The file of image `index`."""
        return str(self.folder / self._names[index])

    def record(self, index: int) -> tuple[bytes, int]:
        """The bytes of image file `index`, and its label (-1 without a label file)."""
        label = -1 if self._labels is None else int(self._labels[index])
        return read_image_file(self.folder / self._names[index]), label


def _open_lmdb(path: Path, dataset: Dataset, request: Request, transform: Callable) -> ImageFolderLMDB:
    """An LMDB file with no more classes than the data set has.

    Raises:
        InputError: it holds more.
    """
    settings = {"name": f"{dataset.name}/{request.split}", "augment": request.augmentation, "fast": request.fast}
    images = ImageFolderLMDB(path, transform, **settings)
    if request.labels_path is not None:
        labels = read_labels(request.labels_path, len(images))
        images = ImageFolderLMDB(path, transform, labels=labels, **settings)
    # an older file tells its classes only when it is read from end to end, which is not worth it here
    known = images.classes is not None or request.labels_path is not None
    if known and (largest := int(images.labels.max())) >= dataset.num_classes:
        raise InputError(f"{path} holds class {largest}, but {dataset.name} has classes 0 to {dataset.num_classes - 1}")
    return images


def open_imagenet(dataset: Dataset, request: Request) -> EncodedImages:
    """ImageNet or a subset; see `open_encoded`."""
    return open_encoded(dataset, request, imagenet_transform(request.image_size, request.purpose))


def open_encoded(dataset: Dataset, request: Request, transform: Callable) -> EncodedImages:
    """Images from wherever `request.path` leads, given out through `transform`.

    That is an LMDB file, a folder that holds `<split>.lmdb` (or `data.mdb`), or a folder of image files; for training,
    a folder that holds train.lmdb and val.lmdb. `request.labels_path` replaces an LMDB file's own labels; for image
    files None means the data set's default file.

    Raises:
        FileNotFoundError: nothing there.
        InputError: something else there.
    """
    path, split, labels_path = request.path, request.split, request.labels_path
    if labels_path is not None and not labels_path.is_file():
        raise FileNotFoundError(f"there is no label file {labels_path} (--labels-path)")
    candidates = [path, path / f"{split}.lmdb", path / "data.mdb"]
    if request.purpose == "training":
        candidates = candidates[1:2]
        if missing := [name for name in ("train.lmdb", "val.lmdb") if not (path / name).is_file()]:
            what = f"holds no {' and no '.join(missing)} (-d/--data; univ/utils/folder2lmdb.py makes them)"
            raise FileNotFoundError(f"{path} {what}")
    elif not path.exists():
        raise FileNotFoundError(
            f"no images of {dataset.name} at {path}: expected an LMDB file, a folder with {split}.lmdb, "
            "or a folder of image files (see --data-path)"
        )
    if file := next(filter(Path.is_file, candidates), None):
        return _open_lmdb(file, dataset, request, transform)
    if split == "train":
        raise FileNotFoundError(f"{path} holds no train.lmdb (univ/utils/folder2lmdb.py makes one)")
    name = f"{dataset.name}/{split}"
    return ImageFiles(path, labels_path or dataset.labels_path, transform, name=name, fast=request.fast)
