"""The record codec, and folder2lmdb.py as a command: order, bytes, refusals, interruptions."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded_image, make_image_folder
from torchvision.datasets import ImageFolder

from univ.data.lmdb import ImageFolderLMDB
from univ.utils import folder2lmdb

settings.register_profile("univ", deadline=None)  # a busy machine is no failure
settings.load_profile("univ")

SCRIPT = Path(folder2lmdb.__file__)
LABELS = st.integers(0, 2**63 - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 classes of 4 images under val/."""
    root = tmp_path_factory.mktemp("images")
    make_image_folder(root / "val", num_classes=100, per_class=4)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    make_image_folder(root / "train", num_classes=3, per_class=2)
    return root


def run(*words, check=True, **options):
    """The script by its path, from a folder where `univ` cannot be found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        check=check,
        env=environment,
        **options,
    )


# --- the codec -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), LABELS)
def test_codec_round_trip(image, label):
    record = folder2lmdb.encode(image, label)
    assert folder2lmdb.decode(record) == folder2lmdb.decode(memoryview(record)) == (image, label)


@given(st.binary(max_size=60), LABELS, st.data())
def test_codec_notices_every_change(image, label, data):
    record = bytearray(folder2lmdb.encode(image, label))
    change = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    if change == "flip":
        record[data.draw(st.integers(0, len(record) - 1))] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del record[data.draw(st.integers(0, len(record) - 1)) :]
    else:
        record += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(ValueError, match=r"checksum|does not begin"):
        folder2lmdb.decode(bytes(record))


@given(st.binary(max_size=80))
def test_codec_never_takes_noise_for_a_record(noise):
    for decode in (folder2lmdb.decode, folder2lmdb.decode_labels, folder2lmdb.decode_meta):
        if decode is folder2lmdb.decode_labels and noise == b"\0" * 4:
            continue  # the checksum of no labels
        with pytest.raises(ValueError):
            decode(noise)


@given(st.lists(LABELS, max_size=20), st.lists(st.text(max_size=5), max_size=5), st.integers(0, 10**9))
def test_labels_and_meta_round_trip(labels, classes, length):
    assert folder2lmdb.decode_labels(folder2lmdb.encode_labels(labels)).tolist() == labels
    meta = folder2lmdb.decode_meta(folder2lmdb.encode_meta(length, classes))
    assert (meta["length"], meta["classes"], meta["version"]) == (length, classes, 1)


@pytest.mark.parametrize("label", [-1, 2**63])
def test_codec_refuses_labels_that_do_not_fit(label):
    with pytest.raises(ValueError, match=str(label)):
        folder2lmdb.encode(b"", label)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b'{"format": "other"}', "format"),
        (b'{"format": "univ-images", "version": 2}', "version 2"),
        (b'{"format": "univ-images", "version": 1, "length": -1}', "length -1"),
        (b'{"format": "univ-images", "version": 1, "length": 1, "classes": [1]}', "class names"),
    ],
)
def test_meta_of_other_kinds_is_refused(meta, message):
    with pytest.raises(ValueError, match=message):
        folder2lmdb.decode_meta(meta)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("procs", [0, 2])
def test_every_record_is_the_files_bytes_in_imagefolders_order(folder, tmp_path, procs):
    printed = run("-f", folder, "-s", "val", "--out", tmp_path, "-p", procs, "--verify").stdout
    assert "400 images of 100 classes" in printed and printed.count("\n") == 1
    reference, ours = ImageFolder(folder / "val"), ImageFolderLMDB(tmp_path / "val.lmdb")
    assert len(ours) == len(reference) == 400
    assert ours.classes == reference.classes
    assert ours.labels.tolist() == reference.targets
    for index, (path, label) in enumerate(reference.samples):
        assert ours.record(index) == (Path(path).read_bytes(), label)
    assert [path.name for path in tmp_path.iterdir()] == ["val.lmdb"]


def test_images_are_those_torchvision_opens(folder, tmp_path):
    run("-f", folder, "-s", "val", "--out", tmp_path, "--quiet")
    reference, ours = ImageFolder(folder / "val"), ImageFolderLMDB(tmp_path / "val.lmdb")
    for index in range(0, 400, 7):  # 7 kinds of image in turn: each of them, in classes far apart
        (image, label), (expected, expected_label) = ours[index], reference[index]
        assert label == expected_label and image.mode == "RGB" and image.tobytes() == expected.tobytes()


def test_default_is_train_beside_its_folder(small, tmp_path):
    shutil.copytree(small, tmp_path / "data")
    run("-f", tmp_path / "data")
    assert len(ImageFolderLMDB(tmp_path / "data" / "train.lmdb")) == 6


def test_existing_files_are_replaced_only_when_asked(small, tmp_path):
    run("-f", small, "--out", tmp_path)
    before = (tmp_path / "train.lmdb").read_bytes()
    refused = run("-f", small, "--out", tmp_path, check=False)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr and refused.stderr.count("\n") == 1
    assert (tmp_path / "train.lmdb").read_bytes() == before
    run("-f", small, "--out", tmp_path, "--overwrite")
    assert len(ImageFolderLMDB(tmp_path / "train.lmdb")) == 6


@pytest.mark.parametrize("procs", [0, 2])
def test_verify_names_what_does_not_decode_and_writes_nothing(small, tmp_path, procs):
    shutil.copytree(small, tmp_path / "data")
    images = sorted((tmp_path / "data" / "train" / "n00001").glob("[aB]*"))
    images[0].write_bytes(images[0].read_bytes()[:200])
    other = tmp_path / "data" / "train" / "n00002" / "empty.jpg"
    other.touch()
    refused = run("-f", tmp_path / "data", "--verify", "-p", procs, "--quiet", check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "2 of 7 images" in refused.stderr and images[0].name in refused.stderr and "empty.jpg" in refused.stderr
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train"]
    assert "7 images" in run("-f", tmp_path / "data", "-p", procs).stdout  # without --verify bytes are bytes


def test_wrong_folders_are_answered_with_one_line(small, tmp_path):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "hole" / "train" / "n00000").mkdir(parents=True)
    for words, message in [
        (["-f", tmp_path / "none"], "there is no folder"),
        (["-f", small, "-s", "test"], "there is no folder"),
        (["-f", tmp_path / "empty"], "no class folders"),
        (["-f", tmp_path / "hole"], "no images in 1 of the class folders"),
        (["-f", small, "--out", "/proc/nowhere"], "/proc/nowhere"),
    ]:
        refused = run(*words, check=False)
        assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1


def test_help_shows_commands():
    printed = run("--help").stdout
    assert "python univ/utils/folder2lmdb.py -f data/imagenet/ILSVRC -s train" in printed and "--verify" in printed


# --- the library -----------------------------------------------------------------------------------------------------


def test_the_map_grows_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(folder2lmdb, "FIRST_MAP_BYTES", 2**16)
    monkeypatch.setattr(folder2lmdb, "COMMIT_BYTES", 2**15)
    records = [(bytes([label]) * 3000, label) for label in range(200)]
    assert folder2lmdb.write_lmdb(tmp_path / "x.lmdb", iter(records), ["a"]) == 200
    written = ImageFolderLMDB(tmp_path / "x.lmdb")
    assert [written.record(index) for index in range(200)] == records


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.lmdb"
    folder2lmdb.write_lmdb(path, [(b"old", 1)], ["a", "b"])

    def records():
        yield b"new", 0
        raise error

    with pytest.raises(error):
        folder2lmdb.write_lmdb(path, records(), ["a"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.lmdb"]
    assert ImageFolderLMDB(path).record(0) == (b"old", 1)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("procs", [0, 2])
def test_signals_leave_nothing_behind(small, tmp_path, sent, code, procs):
    # the last image is a pipe that nobody writes to: reading it waits until the signal comes
    shutil.copytree(small, tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "train" / "n00002" / "z.jpg")
    words = [sys.executable, SCRIPT, "-f", tmp_path / "data", "-p", str(procs)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 20
    while not list((tmp_path / "data").glob(".train.lmdb.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    if procs:  # the readers are stopped by the main process, once the pipe lets go of the one that waits
        os.killpg(process.pid, sent)
        with contextlib.suppress(OSError):  # nobody waits any more
            os.close(os.open(tmp_path / "data" / "train" / "n00002" / "z.jpg", os.O_WRONLY | os.O_NONBLOCK))
    else:
        process.send_signal(sent)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == code and "Traceback" not in printed
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train"]


def test_labels_are_read_without_the_images(small, tmp_path):
    run("-f", small, "--out", tmp_path)
    environment = lmdb.open(str(tmp_path / "train.lmdb"), subdir=False, readonly=True, lock=False)
    with environment.begin() as transaction:
        stored = transaction.get(folder2lmdb.LABELS_KEY)
    environment.close()
    assert folder2lmdb.decode_labels(stored).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(ImageFolderLMDB(tmp_path / "train.lmdb").labels, torch.tensor([0, 0, 1, 1, 2, 2]))


def test_image_files_are_what_they_are_called():
    from io import BytesIO

    from PIL import Image

    modes = {kind: Image.open(BytesIO(encoded_image(kind, 0))).mode for kind in ("rgb", "grey", "cmyk", "png-palette")}
    assert modes == {"rgb": "RGB", "grey": "L", "cmyk": "CMYK", "png-palette": "P"}
