"""ImageNet-50 from ImageNet-100, and label files from LMDB files."""

import json
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from image_files import encoded_image, write_legacy_lmdb

from univ import data
from univ.data.indices import read_labels
from univ.data.lmdb import ImageFolderLMDB, write_lmdb
from univ.errors import InputError
from univ.utils import imagenet50, labels_csv

JPEG = encoded_image("rgb", 0, size=(16, 16))
LABELS = [label for label in range(100) for _ in range(2)]
IMAGES = [JPEG + index.to_bytes(2, "big") for index in range(200)]  # bytes after a JPEG's end are ignored
NAMES = [f"n{label:08d}" for label in range(100)]


@pytest.fixture(scope="module", params=["ours", "legacy"])
def imagenet100(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet100")
    if request.param == "ours":
        write_lmdb(folder / "train.lmdb", zip(IMAGES, LABELS), NAMES)
    else:
        write_legacy_lmdb(folder / "train.lmdb", [([image], np.array(label)) for image, label in zip(IMAGES, LABELS)])
    return folder


def make(imagenet100, out, *words):
    imagenet50.main(["-f", str(imagenet100), "--out", str(out), "--quiet", *words])


def published_classes():
    """The study's recipe, on the global generator as there."""
    state = random.getstate()
    random.seed(34786567)
    classes = sorted(random.sample(list(range(100)), 50))
    random.setstate(state)
    return classes


def test_classes_are_the_published_ones():
    assert imagenet50.chosen_classes() == published_classes()
    assert imagenet50.chosen_classes()[:5] == [5, 6, 8, 10, 12] and imagenet50.chosen_classes()[-1] == 99


def test_subset(imagenet100, tmp_path, capsys):
    make(imagenet100, tmp_path)
    assert "100 images of 50 classes" in capsys.readouterr().out
    subset = ImageFolderLMDB(tmp_path / "train.lmdb")
    chosen = published_classes()
    kept = [index for index, label in enumerate(LABELS) if label in chosen]
    assert [subset.record(i) for i in range(100)] == [(IMAGES[k], chosen.index(LABELS[k])) for k in kept]
    assert subset.classes in ([NAMES[label] for label in chosen], [f"imagenet100:{label}" for label in chosen])

    frame = pd.read_csv(tmp_path / "train_labels.csv", index_col=0)
    assert frame.index.tolist() == list(range(100)) and frame.columns.tolist() == ["0"]
    assert frame["0"].tolist() == subset.labels.tolist() == [label for label in range(50) for _ in range(2)]
    label_map = json.loads((tmp_path / "train_imagenet100_to_imagenet50_labelmap.json").read_text())
    assert label_map == {str(label): new for new, label in enumerate(chosen)}
    assert len(data.open_images("imagenet50", data_path=tmp_path)) == 100


def test_labels_are_numbered_in_order_of_appearance(tmp_path):
    order = np.random.default_rng(0).permutation(200).tolist()
    write_lmdb(tmp_path / "train.lmdb", [(IMAGES[i], LABELS[i]) for i in order], NAMES)
    make(tmp_path, tmp_path / "out")
    subset = ImageFolderLMDB(tmp_path / "out" / "train.lmdb")
    appearance = list(dict.fromkeys(LABELS[i] for i in order if LABELS[i] in published_classes()))
    assert list(dict.fromkeys(subset.labels.tolist())) == list(range(50))
    assert subset.classes == [NAMES[label] for label in appearance]

    # a validation part in another order would number the classes differently
    write_lmdb(tmp_path / "val.lmdb", zip(IMAGES, LABELS), NAMES)
    with pytest.raises(InputError, match=r"another order than in .*train_imagenet100"):
        make(tmp_path, tmp_path / "out", "-s", "val")
    assert not (tmp_path / "out" / "val.lmdb").exists()


def test_existing_files_are_replaced_only_when_asked(imagenet100, tmp_path):
    make(imagenet100, tmp_path)
    with pytest.raises(InputError, match="--overwrite"):
        make(imagenet100, tmp_path)
    make(imagenet100, tmp_path, "--overwrite")
    with pytest.raises(InputError, match="would replace the file that is read"):
        make(imagenet100, imagenet100, "--overwrite")


@pytest.mark.parametrize("labels", [range(99), range(1, 101), range(101)])
def test_other_data_sets_are_refused(tmp_path, labels):
    write_legacy_lmdb(tmp_path / "train.lmdb", [([JPEG], np.array(label)) for label in labels])
    with pytest.raises(InputError, match="is not ImageNet-100"):
        make(tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    write_lmdb(tmp_path / "train.lmdb", [(JPEG, 0)], ["a"])
    with pytest.raises(InputError, match="has 1 classes"):
        make(tmp_path, tmp_path / "out")


def test_labels_csv(imagenet100, tmp_path, capsys):
    out = tmp_path / "labels.csv"
    labels_csv.main([str(imagenet100 / "train.lmdb"), "--out", str(out), "--quiet"])
    assert "200 labels of 100 classes" in capsys.readouterr().out
    assert read_labels(out, 200).tolist() == LABELS
    with pytest.raises(InputError, match="--overwrite"):
        labels_csv.main([str(imagenet100 / "train.lmdb"), "--out", str(out), "--quiet"])


@pytest.mark.parametrize("script", [imagenet50, labels_csv])
def test_scripts_run_by_their_path(script, tmp_path):
    words = ["-f", "none"] if script is imagenet50 else ["none.lmdb"]
    refused = subprocess.run([sys.executable, script.__file__, *words], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr and "none" in refused.stderr
