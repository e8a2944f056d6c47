"""Data sets by name: all that is known about each before a file is opened, and how to open it as images.

Everything opens as `Images`: element i is a float32 (3, H, W) tensor in [0, 1] and a label. Normalisation is the
model's business. To add a data set, add an entry to DATASETS, and an opener if it is stored in a way of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from univ.data import folders
from univ.data.cifar import open_cifar10
from univ.data.digits import open_digits
from univ.data.entry import Dataset, Images, Purpose, Request, Split
from univ.data.imagenet import open_imagenet
from univ.data.sat6 import open_sat6
from univ.data.transforms import Channels, ImageNetAugmentation, SmallImageAugmentation
from univ.errors import InputError

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
STUDY_RADII = (0.0, 0.25, 0.5, 1.0, 3.0)

_IMAGENET = Dataset(
    "imagenet",
    "ImageNet-1k",
    open_imagenet,
    1000,
    image_size=224,
    default_path=Path("data/imagenet/images"),
    labels_path=Path("data/imagenet/labels/labels.csv"),
    radii=STUDY_RADII,
    architectures="imagenet",
    training_path=Path("data/imagenet/ILSVRC"),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    augmentation=ImageNetAugmentation(224),
)


def _imagenet_subset(num_classes: int) -> Dataset:
    name = f"imagenet{num_classes}"
    return replace(
        _IMAGENET,
        name=name,
        label=f"ImageNet-{num_classes}",
        num_classes=num_classes,
        default_path=Path("data") / name / "train.lmdb",
        labels_path=None,
        comparison_split="train",  # as in the study: the validation parts hold too few images for n = 10 000
        compared_models=("resnet50", "wide_resnet50_2", "densenet161", "vgg16_bn"),
        training_path=Path("data/imagenet") / name,
    )


_CIFAR10 = Dataset(
    "cifar10",
    "CIFAR-10",
    open_cifar10,
    10,
    image_size=32,
    default_path=Path("data/cifar10"),
    num_compared=None,
    radii=STUDY_RADII,
    architectures="cifar10",
    training_path=Path("data/cifar10"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),  # mean over images of each image's own std: what the published models carry
    augmentation=SmallImageAugmentation(),
    weight_decay=5e-4,
    suffix=".pt",
)
_DIGITS = Dataset(
    "digits",
    "digits",
    open_digits,
    10,
    image_size=32,
    default_path=None,
    num_compared=None,
    architectures="digits",
    mean=(0.3054,) * 3,  # grey images: the three channels are equal; tests/test_data.py recomputes the two numbers
    std=(0.3237,) * 3,
    weight_decay=5e-4,
    suffix=".pt",
)
_SAT6 = Dataset("sat6", "sat6", open_sat6, 6, image_size=224, default_path=Path("data/sat6"))

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (_IMAGENET, _imagenet_subset(100), _imagenet_subset(50), _CIFAR10, _DIGITS, _SAT6)
}
REFUSED = {
    "snli": "is a data set of sentences, which no image model reads: compare text models by "
    "rep.py --reps and func.py --logits"
}  # the original's scripts know it by name


RECIPES = {"imagenet": _IMAGENET, "cifar10": _CIFAR10}
"""The data sets whose training settings a folder's can be, see `folders.measure`."""


def trainable() -> tuple[str, ...]:
    """Names of the built-in data sets that models are trained on."""
    return tuple(name for name, dataset in DATASETS.items() if dataset.architectures is not None)


def untrained(name: str) -> InputError:
    """What is wrong with asking for models, or the training, of a data set without architectures."""
    if folders.is_folder(name):
        scripts = "imagenet_training.py and cifar10_training.py"
        return InputError(f"no models are trained on {name} yet: it has no {folders.RECORD}, which {scripts} write")
    return InputError(
        f"no models are trained on {name!r}: choose from {', '.join(trainable())}, or {folders.PREFIX}PATH"
    )


def dataset_name(name: str) -> str:
    """What results are filed under: the name itself, or the folder's that `folder:PATH` names. Nothing is read."""
    if not folders.is_folder(name):
        return name
    return folders.file_safe(name, taken={*DATASETS, *REFUSED})


def find_dataset(name: str) -> Dataset:
    """All that is known of a data set.

    Args:
        name: key of DATASETS, or `folder:PATH`. `Dataset.name` is what `dataset_name` says.

    Raises:
        InputError: there is none; names those there are. Of a folder: one class, parts that differ in their classes, a
            damaged dataset.json.
        FileNotFoundError: no such folder, or one without train and val.
    """
    if folders.is_folder(name):
        return _folder(name)
    if name not in DATASETS:
        why = f"{name} {REFUSED[name]}" if name in REFUSED else f"unknown data set {name!r}"
        raise InputError(f"{why}; choose from {', '.join(DATASETS)}, or {folders.PREFIX}PATH")
    return DATASETS[name]


def measure_folder(name: str, recipe: str, image_size: int | None = None) -> None:
    """Measure the pictures of `folder:PATH` before the first training; see `folders.measure`, also for the errors.

    Args:
        recipe: key of RECIPES.
        image_size: side of the square images, pixels; None takes what was measured, else that of the recipe.
    """
    folders.measure(name, recipe, image_size, usual_size=RECIPES[recipe].image_size)


def _folder(name: str) -> Dataset:
    """The entry of `folder:PATH`. Before it is measured models are only compared on it."""
    path = folders.path_of(name)
    classes = folders.read_classes(path)
    known = dataset_name(name)
    entry = Dataset(known, known, folders.open_folder, len(classes), image_size=224, default_path=path)
    record = folders.read_record(path, classes)
    if record is None:
        return entry
    recipe = RECIPES[record.recipe]
    sized = isinstance(recipe.augmentation, ImageNetAugmentation)
    return replace(
        entry,
        image_size=record.image_size,
        architectures="imagenet" if recipe is _IMAGENET else "small",
        compared_models=(),
        training_path=path,
        mean=tuple(record.mean),
        std=tuple(record.std),
        augmentation=ImageNetAugmentation(record.image_size) if sized else recipe.augmentation,
        weight_decay=recipe.weight_decay,
    )


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
        name: key of DATASETS, or `folder:PATH`.
        split: part of the data set; None takes the one the study compares models on. "val" of CIFAR-10 and digits is
            their test part. SAT-6 has only its test part. A `data_path` that is a file is read whatever the split.
        image_size: side of the square images, where the models want another one than the data set's own.
        data_path: LMDB file, folder that holds `<split>.lmdb`, folder of image files, or folder of CIFAR-10 or SAT-6
            files; None takes the data set's default path.
        labels_path: ImageNet and `folder:` only. Labels of a folder of image files, one per line, images sorted by name
            (None takes the default path); for an LMDB file, labels that replace its own.
        purpose: ImageNet and `folder:` only. "similarity" resizes the short side to 255 before the 224 centre crop,
            "evaluation" to 256, as in the study and the training code it builds on.
        fast: ImageNet and `folder:` only. Decode and resize nearly twice as fast, some pixels off by 1/255 or 2/255
            (see `images.EncodedImages`).

    Raises:
        InputError: unknown name, or files that do not hold what they should.
        FileNotFoundError: files that are not there.
    """
    dataset = find_dataset(name)
    for what, value, known in [("part", split, Split), ("purpose", purpose, Purpose)]:
        if value is not None and value not in known.__args__:
            raise InputError(f"unknown {what} {value!r} of {name}; choose from {', '.join(known.__args__)}")
    request = Request(
        split or dataset.comparison_split,
        Path(data_path) if data_path is not None else dataset.default_path,
        image_size or dataset.image_size,
        Path(labels_path) if labels_path is not None else None,
        purpose,
        fast=fast,
    )
    return dataset.opener(dataset, request)


def open_training(
    name: str, data_path: Path | str | None = None, *, augment: bool = True, fast: bool = False
) -> tuple[Images, Images]:
    """The training part, which carries its augmentation for `loaders.TrainingBatches`, and the validation part.

    Args:
        name: a data set that models are trained on.
        data_path: folder with train.lmdb and val.lmdb, or with the CIFAR-10 batches; None takes the default.
        augment: False trains on the images as evaluation sees them.
        fast: as in `open_images`.

    Raises:
        InputError: unknown name, no training part, or files that do not hold what they should.
        FileNotFoundError: files that are not there.
    """
    dataset = find_dataset(name)
    if dataset.architectures is None:
        raise untrained(name)
    path = Path(data_path) if data_path is not None else dataset.training_path
    validation = Request("val", path, dataset.image_size, purpose="training", fast=fast)
    training = replace(validation, split="train", augmentation=dataset.augmentation if augment else None)
    return dataset.opener(dataset, training), dataset.opener(dataset, validation)
