"""Data sets by name: what they hold, where their files lie by default, and how to open them as images.

Everything opens as `Images`: element i is a float32 (3, H, W) tensor in [0, 1] and a label. Normalisation is the
model's business. Importing this module is cheap; what reads a data set is imported when the data set is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from univ.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Channels = tuple[float, float, float]
Split = Literal["train", "val"]
Purpose = Literal["similarity", "evaluation"]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dataset:
    """What is known about a data set before any of its files is opened."""

    name: str
    num_classes: int | None
    image_size: int  # side of the square images that `open_images` gives by default, pixels
    mean: (
        Channels | None
    )  # per-channel pixel mean of the training part, images in [0, 1]; None: no model is trained on it
    std: Channels | None
    default_path: Path | None  # images that models are compared on (rep.py, func.py, inversion.py --data-path)
    training_path: Path | None = None  # what the training scripts read (-d/--data)
    labels_path: Path | None = None  # labels that are kept apart from the images
    comparison_split: Split = "val"  # the part the study compares models on

    @property
    def inverted_path(self) -> Path:
        """Folder of the inverted images, one `<model>_<eps>.pt` each."""
        return Path("data") / self.name / "inverted"


def _imagenet_subset(num_classes: int) -> Dataset:
    name = f"imagenet{num_classes}"
    return Dataset(
        name,
        num_classes,
        224,
        IMAGENET_MEAN,
        IMAGENET_STD,
        default_path=Path("data") / name / "train.lmdb",
        training_path=Path("data/imagenet") / name,
        comparison_split="train",  # as in the study: the validation parts hold too few images for n = 10 000
    )


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "imagenet",
            1000,
            224,
            IMAGENET_MEAN,
            IMAGENET_STD,
            default_path=Path("data/imagenet/images"),
            training_path=Path("data/imagenet/ILSVRC"),
            labels_path=Path("data/imagenet/labels/labels.csv"),
        ),
        _imagenet_subset(100),
        _imagenet_subset(50),
        Dataset(
            "cifar10",
            10,
            32,
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),  # mean over images of each image's own std: what the published models carry
            default_path=Path("data/cifar10"),
            training_path=Path("data/cifar10"),
        ),
        # grey images: the three channels are equal; tests/test_data.py recomputes the two numbers
        Dataset("digits", 10, 32, (0.3054,) * 3, (0.3237,) * 3, default_path=None),
        Dataset("sat6", 6, 224, None, None, default_path=Path("data/sat6")),
    )
}
TRAINABLE = tuple(name for name, dataset in DATASETS.items() if dataset.mean is not None)


class Images(Protocol):
    """A map-style data set of images, its labels known without decoding one of them."""

    labels: Tensor  # (N,) int64
    transform_name: str  # what happens between the stored image and the tensor, in words fit for a file name
    fingerprint: str  # equal exactly when name, part, length, transform, all images and all labels are equal

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...  # float32 (3, H, W) in [0, 1], label


def find_dataset(name: str) -> Dataset:
    """The entry of DATASETS called `name`.

    Raises:
        InputError: there is none; names those there are.
    """
    if name == "snli":
        raise InputError(
            f"snli is a data set of sentences, which no image model reads; choose from {', '.join(DATASETS)}"
        )
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def open_images(
    name: str,
    split: Split | None = None,
    *,
    image_size: int | None = None,
    data_path: Path | str | None = None,
    labels_path: Path | str | None = None,
    purpose: Purpose = "similarity",
    fast: bool = False,
) -> Images:
    """Images to compare, invert or evaluate models on: in their stored order, without augmentation.

    Args:
        name: key of DATASETS.
        split: part of the data set; None takes the one the study compares models on. "val" of CIFAR-10 and digits is
            their test part. SAT-6 has only its test part. A `data_path` that is a file is read whatever the split.
        image_size: side of the square images, where the models want another one than the data set's own.
        data_path: LMDB file, folder that holds `<split>.lmdb`, folder of image files, or folder of CIFAR-10 or SAT-6
            files; None takes the data set's default path.
        labels_path: ImageNet only. Labels of a folder of image files, one per line, images sorted by name (None takes
            the default path); for an LMDB file, labels that replace its own.
        purpose: ImageNet only. "similarity" resizes the short side to 255 before the 224 centre crop, "evaluation"
            to 256, as in the study and the training code it builds on.
        fast: ImageNet only. Decode and resize nearly twice as fast, some pixels off by 1/255 or 2/255 (see
            `images.EncodedImages`).

    Raises:
        InputError: unknown name, or files that do not hold what they should.
        FileNotFoundError: files that are not there.
    """
    dataset = find_dataset(name)
    if split not in (None, "train", "val"):
        raise InputError(f"unknown part {split!r} of {name}; choose from train, val")
    split = split or dataset.comparison_split
    size = image_size or dataset.image_size
    path = Path(data_path) if data_path is not None else dataset.default_path
    if name == "digits":
        from univ.data import digits

        return digits.open_digits(split, image_size=size)
    if name == "cifar10":
        from univ.data import cifar

        return cifar.open_cifar10(path, split, image_size=size)
    if name == "sat6":
        from univ.data import sat6

        return sat6.open_sat6(path, image_size=size)
    from univ.data import imagenet

    labels = Path(labels_path) if labels_path is not None else None
    return imagenet.open_imagenet(dataset, path, split, labels_path=labels, image_size=size, purpose=purpose, fast=fast)


def open_training(
    name: str, data_path: Path | str | None = None, *, augment: bool = True, fast: bool = False
) -> tuple[Images, Images]:
    """The training part, which carries its augmentation for `loaders.TrainingBatches`, and the validation part.

    Args:
        name: imagenet, imagenet100, imagenet50, cifar10 or digits (which is never augmented).
        data_path: folder with train.lmdb and val.lmdb, or with the CIFAR-10 batches; None takes the default.
        augment: False trains on the images as evaluation sees them.
        fast: as in `open_images`.

    Raises:
        InputError: unknown name, no training part, or files that do not hold what they should.
        FileNotFoundError: files that are not there.
    """
    dataset = find_dataset(name)
    path = Path(data_path) if data_path is not None else dataset.training_path
    if name == "digits":
        from univ.data import digits

        return digits.open_digits("train"), digits.open_digits("val")
    if name == "cifar10":
        from univ.data import cifar

        return cifar.open_cifar10(path, "train", augment=augment), cifar.open_cifar10(path, "val")
    if path is None:
        raise InputError(f"{name} has no training part; choose from {', '.join(TRAINABLE)}")
    from univ.data import imagenet

    return imagenet.open_imagenet_training(dataset, path, augment=augment, fast=fast)
