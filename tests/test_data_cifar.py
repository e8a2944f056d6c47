"""CIFAR-10 files in the published format, written here byte by byte as Python 2 wrote them."""

import pickle
import struct

import numpy as np
import pytest
import torch
from image_files import Dangerous
from torchvision.datasets import CIFAR10

from univ import data
from univ.data import cifar
from univ.data.loaders import TrainingBatches
from univ.data.transforms import SmallImageAugmentation
from univ.errors import InputError


def text(value):
    """A Python 2 string."""
    value = value if isinstance(value, bytes) else value.encode()
    return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value


def integer(value):
    return b"J" + struct.pack("<i", value)


def batch_bytes(pixels, labels):
    """What Python 2's cPickle (protocol 2) wrote: the layout of cifar-10-batches-py/data_batch_1."""
    n, width = pixels.shape
    dtype = b"cnumpy\ndtype\n" + text("u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text("|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text("b") + b"\x87R"
    array += (
        b"(" + integer(1) + integer(n) + integer(width) + b"\x86" + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    )
    fields = {
        "batch_label": text("training batch 1 of 5"),
        "labels": b"](" + b"".join(map(integer, labels)) + b"e",
        "data": array,
        "filenames": b"](" + b"".join(text(f"{i}.png") for i in range(n)) + b"e",
    }
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in fields.items()) + b"u."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar10")
    (root / cifar.FOLDER).mkdir()
    rng = np.random.default_rng(0)
    for name in [*cifar.BATCHES["train"], *cifar.BATCHES["val"]]:
        pixels, labels = rng.integers(0, 256, (20, 3072), dtype=np.uint8), rng.integers(0, 10, 20).tolist()
        (root / cifar.FOLDER / name).write_bytes(batch_bytes(pixels, labels))
    return root


def test_our_files_are_in_the_format_torchvision_reads(folder):
    entry = pickle.loads((folder / cifar.FOLDER / "test_batch").read_bytes(), encoding="latin1")
    assert entry["data"].shape == (20, 3072) and entry["batch_label"] == "training batch 1 of 5"


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_and_labels_are_torchvisions(folder, split, monkeypatch):
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    theirs = CIFAR10(folder, train=split == "train")
    ours = data.open_images("cifar10", split, data_path=folder)
    assert torch.equal(ours.pixels.permute(0, 2, 3, 1), torch.from_numpy(theirs.data))
    assert ours.labels.tolist() == theirs.targets
    assert ours[3][0].dtype == torch.float32 and torch.equal(ours[3][0], ours.pixels[3] / 255)


def test_the_inner_folder_works_too(folder):
    inner = data.open_images("cifar10", data_path=folder / cifar.FOLDER)
    assert inner.fingerprint == data.open_images("cifar10", data_path=folder).fingerprint
    assert inner.fingerprint != data.open_images("cifar10", "train", data_path=folder).fingerprint


def test_training_part_carries_its_augmentation(folder):
    train, val = data.open_training("cifar10", folder)
    assert train.augment == SmallImageAugmentation() and val.augment is None
    assert data.open_training("cifar10", folder, augment=False)[0].augment is None
    pixels, labels = next(iter(TrainingBatches(train, 100, device="cpu", seed=0)))
    order = torch.tensor([(train.labels == label).sum() for label in range(10)])
    assert pixels.shape == (100, 3, 32, 32) and torch.equal(torch.bincount(labels, minlength=10), order)


def test_other_sizes_are_enlarged(folder):
    images = data.open_images("cifar10", data_path=folder, image_size=224)
    assert images[0][0].shape == (3, 224, 224) and images.transform_name == "resize224"


def test_missing_files_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="data_batch_1, data_batch_2"):
        data.open_images("cifar10", "train", data_path=tmp_path)


def test_nothing_in_a_batch_file_runs(tmp_path):
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": Dangerous(tmp_path / "ran"), "labels": []}))
    with pytest.raises(InputError, match=r"test_batch.*open"):
        data.open_images("cifar10", data_path=tmp_path)
    assert not (tmp_path / "ran").exists()


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (batch_bytes(PIXELS, [0, 1])[:-3000], "test_batch"),
        (b"", "test_batch"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"labels": [1]}), "'data'"),
        (pickle.dumps({"data": PIXELS[:, :100], "labels": [0, 1]}), "'data'"),
        (pickle.dumps({"data": PIXELS, "labels": [0, 10]}), "'labels'"),
        (pickle.dumps({"data": PIXELS, "labels": [0]}), "2 images but 1 labels"),
    ],
    ids=["truncated", "empty", "no-dict", "no-data", "not-32x32", "class-10", "one-label"],
)
def test_damaged_and_foreign_files_are_refused(tmp_path, contents, message):
    (tmp_path / "test_batch").write_bytes(contents)
    with pytest.raises(InputError, match=message):
        data.open_images("cifar10", data_path=tmp_path)


def test_a_full_batch_must_be_the_published_one(tmp_path):
    (tmp_path / "test_batch").write_bytes(batch_bytes(np.zeros((10_000, 3072), np.uint8), [0] * 10_000))
    with pytest.raises(InputError, match="not the published file"):
        data.open_images("cifar10", data_path=tmp_path)
