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
    dataset_name,
    find_dataset,
    measure_folder,
    open_images,
    open_training,
    trainable,
    untrained,
)
from univ.data.entry import inverted_path
from univ.data.folders import DatasetNames, is_folder

__all__ = [
    "DATASETS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "REFUSED",
    "Channels",
    "Dataset",
    "DatasetNames",
    "Images",
    "Purpose",
    "Request",
    "Split",
    "dataset_name",
    "find_dataset",
    "inverted_path",
    "is_folder",
    "measure_folder",
    "open_images",
    "open_training",
    "trainable",
    "untrained",
]
