"""ImageNet from LMDB files and from a folder of images; SAT-6 from its CSV files."""

import io
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from image_files import KINDS, Dangerous, encoded_image, monsters, write_legacy_lmdb
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

from univ import data
from univ.data import sat6
from univ.data.indices import write_labels
from univ.data.lmdb import write_lmdb
from univ.data.loaders import Batches, TrainingBatches
from univ.data.transforms import ImageNetAugmentation
from univ.errors import InputError

N = 14
LABELS = [3 * (index % 5) for index in range(N)]
IMAGES = [encoded_image(KINDS[index % len(KINDS)], seed=index) for index in range(N)]
TRANSFORMS = {
    "similarity": T.Compose([T.Resize(255), T.CenterCrop(224), T.ToTensor()]),
    "evaluation": T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor()]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """train.lmdb and val.lmdb, and the same images as files with their labels in another folder."""
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        write_lmdb(root / f"{split}.lmdb", zip(IMAGES, LABELS), [str(label) for label in range(13)])
    (root / "images").mkdir()
    for index, image in enumerate(IMAGES):
        (root / "images" / f"ILSVRC2012_val_{index:08d}.JPEG").write_bytes(image)
    (root / "images" / "README.txt").write_text("not an image")
    write_labels(root / "labels.csv", torch.tensor(LABELS))
    return root


@pytest.mark.parametrize("purpose", TRANSFORMS)
@pytest.mark.parametrize("path", ["val.lmdb", "", "images"])
def test_images_from_everywhere_are_torchvisions(root, path, purpose):
    labels_path = root / "labels.csv" if path == "images" else None
    images = data.open_images("imagenet", data_path=root / path, labels_path=labels_path, purpose=purpose)
    assert len(images) == N and images.labels.tolist() == LABELS
    for index in (0, 2, 5, 13):
        pixels, label = images[index]
        expected = TRANSFORMS[purpose](Image.open(io.BytesIO(IMAGES[index])).convert("RGB"))
        assert label == LABELS[index] and torch.equal(pixels, expected)


def test_files_and_lmdb_are_the_same_inputs(root):
    files = data.open_images("imagenet", data_path=root / "images", labels_path=root / "labels.csv")
    lmdb = data.open_images("imagenet", data_path=root / "val.lmdb")
    evaluation = data.open_images("imagenet", data_path=root / "val.lmdb", purpose="evaluation")
    assert files.fingerprint == lmdb.fingerprint != evaluation.fingerprint
    assert files.transform_name == "resize255-crop224"


def test_similarity_needs_no_labels_but_asking_for_them_says_what_is_missing(root, monkeypatch):
    monkeypatch.chdir(root)
    images = data.open_images("imagenet", data_path="images")
    assert images[0][1] == -1
    with pytest.raises(FileNotFoundError, match=r"data/imagenet/labels/labels\.csv .*--labels-path"):
        _ = images.labels


def test_wrong_labels_are_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="--labels-path"):
        data.open_images("imagenet", data_path=root / "images", labels_path=tmp_path / "none.csv")
    write_labels(tmp_path / "labels.csv", torch.arange(3))
    for path in ("images", "val.lmdb"):
        with pytest.raises(InputError, match="3 labels for 14 images"):
            data.open_images("imagenet", data_path=root / path, labels_path=tmp_path / "labels.csv")


def test_labels_may_replace_an_lmdbs_own(root, tmp_path):
    write_labels(tmp_path / "labels.csv", torch.arange(N))
    images = data.open_images("imagenet", data_path=root / "val.lmdb", labels_path=tmp_path / "labels.csv")
    assert images.labels.tolist() == list(range(N)) and images[7][1] == 7


def test_subsets_are_compared_on_their_training_part(root):
    assert data.open_images("imagenet100", data_path=root).name == "imagenet100/train"
    assert data.open_images("imagenet100", "val", data_path=root).name == "imagenet100/val"


def test_missing_and_empty_paths_say_what_belongs_there(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected an LMDB file, a folder with val\.lmdb"):
        data.open_images("imagenet", data_path=tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no image files"):
        data.open_images("imagenet", data_path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no train\.lmdb"):
        data.open_images("imagenet100", data_path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no train\.lmdb and no val\.lmdb"):
        data.open_training("imagenet", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"X_test_sat6\.csv"):
        data.open_images("sat6", data_path=tmp_path)


def test_more_classes_than_the_data_set_has(tmp_path):
    write_lmdb(tmp_path / "train.lmdb", [(IMAGES[0], 0), (IMAGES[1], 50)], [str(i) for i in range(51)])
    with pytest.raises(InputError, match="holds class 50, but imagenet50 has classes 0 to 49"):
        data.open_images("imagenet50", data_path=tmp_path)
    assert len(data.open_images("imagenet100", data_path=tmp_path)) == 2


def test_training_and_validation(root):
    train, val = data.open_training("imagenet", root)
    assert isinstance(train.augment, ImageNetAugmentation) and val.augment is None
    assert val.transform_name == "resize256-crop224"
    pixels, labels = next(iter(TrainingBatches(train, N, device="cpu", seed=0)))
    assert pixels.shape == (N, 3, 224, 224) and sorted(labels.tolist()) == sorted(LABELS)
    plain, _ = data.open_training("imagenet", root, augment=False)
    assert plain.augment is None


def test_older_files_train_too(root, tmp_path):
    for split in ("train", "val"):
        write_legacy_lmdb(tmp_path / f"{split}.lmdb", [([i], np.array(label)) for i, label in zip(IMAGES, LABELS)])
    seen = [
        next(iter(TrainingBatches(data.open_training("imagenet", path)[0], 4, device="cpu", seed=0)))
        for path in (root, tmp_path)
    ]
    assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("fast", [False, True])
def test_programs_and_images_that_fill_the_memory_are_refused(tmp_path, fast):
    """In a process of its own, because what was allocated once is not returned to the system."""
    (tmp_path / "images").mkdir()
    for name, content in monsters().items():
        (tmp_path / "images" / name).write_bytes(content)
    (tmp_path / "images" / "a.jpg").write_bytes(encoded_image("rgb", 0))
    code = f"""
import resource, sys
from univ.data import open_images
from univ.errors import InputError
images = open_images("imagenet", data_path={str(tmp_path / "images")!r}, fast={fast})
images[0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index in range(1, len(images)):
    try:
        images[index]
    except InputError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    assert done.stderr == "" and int(megabytes) < 100
    for line, name in zip(said, sorted(monsters()), strict=True):
        assert name in line


def test_a_damaged_file_is_named(root, tmp_path):
    (tmp_path / "a.jpg").write_bytes(IMAGES[0])
    (tmp_path / "b.jpg").write_bytes(IMAGES[0][:100])
    with pytest.raises(InputError, match=r"b\.jpg: damaged image"):
        list(Batches(data.open_images("imagenet", data_path=tmp_path), 2, device="cpu"))


# --- SAT-6 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sat6_folder(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 28, 28, 4))
    labels = np.array([0, 1, 2, 3, 4, 5, 5, 0, 2])
    pd.DataFrame(pixels.reshape(9, -1)).to_csv(tmp_path / sat6.IMAGES, header=False, index=False)
    pd.DataFrame(np.eye(6, dtype=int)[labels]).to_csv(tmp_path / sat6.LABELS, header=False, index=False)
    return tmp_path, pixels.astype(np.uint8), labels


def test_sat6_is_pillows_rgb_of_the_csv(sat6_folder):
    folder, pixels, labels = sat6_folder
    images = data.open_images("sat6", data_path=folder)
    assert images.labels.tolist() == labels.tolist()
    for index, rgba in enumerate(pixels):
        rgb = Image.fromarray(rgba, "RGBA").convert("RGB")
        assert torch.equal(images.pixels[index], F.pil_to_tensor(rgb))
        expected = F.to_tensor(F.center_crop(F.resize(rgb, 255), [224, 224]))
        assert images[index][0].shape == (3, 224, 224)
        assert (images[index][0] - expected).abs().max() <= 1.01 / 255  # Pillow rounds after each axis


def test_sat6_for_small_models(sat6_folder):
    folder, pixels, _ = sat6_folder
    images = data.open_images("sat6", data_path=folder, image_size=32)
    expected = F.to_tensor(F.resize(Image.fromarray(pixels[3], "RGBA").convert("RGB"), 32))
    assert images.transform_name == "resize32" and (images[3][0] - expected).abs().max() <= 1.01 / 255


def test_sat6_text_is_read_once(sat6_folder, monkeypatch):
    folder, *_ = sat6_folder
    first = data.open_images("sat6", data_path=folder)
    assert (folder / sat6.CACHE).exists()
    text = (folder / sat6.IMAGES).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(sat6, "IMAGES", "no such file")
        assert data.open_images("sat6", data_path=folder).fingerprint == first.fingerprint
    (folder / sat6.IMAGES).write_text(f"{255 - int(text.partition(',')[0])},{text.partition(',')[2]}")
    later = time.time() + 10
    os.utime(folder / sat6.IMAGES, (later, later))
    assert data.open_images("sat6", data_path=folder).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        (sat6.IMAGES, "1,2,3\n", "3 columns, expected 3136"),
        (sat6.IMAGES, ",".join(["256"] * 3136), "from 256 to 256"),
        (sat6.IMAGES, ",".join(["x"] * 3136), "not a CSV file of whole numbers"),
        (sat6.IMAGES, "", "not a CSV file"),
        (sat6.LABELS, "1,0,0,0,0,0\n", "9 images .* 1 labels"),
        (sat6.LABELS, "1,1,0,0,0,0\n", "one 1"),
    ],
)
def test_sat6_files_of_other_kinds(sat6_folder, file, contents, message):
    folder, *_ = sat6_folder
    (folder / file).write_text(contents)
    with pytest.raises(InputError, match=message):
        data.open_images("sat6", data_path=folder)


@pytest.mark.parametrize("pickled_array", [True, False])
def test_nothing_in_a_sat6_cache_runs(sat6_folder, pickled_array):
    folder, *_ = sat6_folder
    danger = Dangerous(folder / "ran")
    if pickled_array:
        np.save(folder / sat6.CACHE, np.array([danger], dtype=object))
    else:
        (folder / sat6.CACHE).write_bytes(pickle.dumps(danger))
    with pytest.raises(InputError, match="remove it"):
        data.open_images("sat6", data_path=folder)
    assert not (folder / "ran").exists()


def test_sat6_in_a_folder_that_cannot_be_written(sat6_folder, monkeypatch):
    folder, *_ = sat6_folder

    def refuse(path):
        raise InputError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(sat6, "atomic_path", refuse)
    assert len(data.open_images("sat6", data_path=folder)) == 9
