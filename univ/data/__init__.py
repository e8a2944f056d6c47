"""Images: record i of a data set -> float (3, H, W) in [0, 1] and its label."""

from univ.data.datasets import (
    DATASETS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    REFUSED,
    Channels,
    Dataset,
    Images,
    Purpose,
    Request,
    Split,
    find_dataset,
    open_images,
    open_training,
    trainable,
)

__all__ = [
    "DATASETS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "REFUSED",
    "Channels",
    "Dataset",
    "Images",
    "Purpose",
    "Request",
    "Split",
    "find_dataset",
    "open_images",
    "open_training",
    "trainable",
]
