"""folder2lmdb.py as a command: order, bytes, refusals, interruptions."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_files import make_image_folder, monsters
from torchvision.datasets import ImageFolder

from univ.data.lmdb import ImageFolderLMDB
from univ.errors import InputError
from univ.utils import folder2lmdb

SCRIPT = Path(folder2lmdb.__file__)
ROOT = SCRIPT.parents[2]


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
    environment = options.pop("env", os.environ)
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        check=check,
        env=environment,
        **options,
    )


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


def test_existing_files_are_replaced_only_when_asked(small, tmp_path):
    folder2lmdb.main(["-f", str(small), "--out", str(tmp_path), "--quiet"])
    before = (tmp_path / "train.lmdb").read_bytes()
    refused = run("-f", small, "--out", tmp_path, check=False)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr and refused.stderr.count("\n") == 1
    assert (tmp_path / "train.lmdb").read_bytes() == before
    folder2lmdb.main(["-f", str(small), "--out", str(tmp_path), "--quiet", "--overwrite"])
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
    assert len(ImageFolderLMDB(tmp_path / "data" / "train.lmdb")) == 7


def test_verify_starts_no_other_program_and_bounds_its_memory(small, tmp_path):
    shutil.copytree(small, tmp_path / "data")
    for name, content in monsters().items():
        (tmp_path / "data" / "train" / "n00001" / name).write_bytes(content)
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    ghostscript.chmod(0o755)
    memory = 5 * 2**30  # of addresses: torch takes 3 GB of them, the file to be written 1 GB, a bomb would take 10 GB

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    words = ["-f", tmp_path / "data", "--verify", "--quiet"]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    refused = run(*words, check=False, preexec_fn=limit, env=environment)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr and "Warning" not in refused.stderr
    assert f"{len(monsters())} of {6 + len(monsters())} images" in refused.stderr, refused.stderr
    assert all(name in refused.stderr for name in monsters()) and "MemoryError" not in refused.stderr
    assert not (tmp_path / "called").exists()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train"]


@pytest.mark.parametrize("verify", [[], ["--verify"]])
def test_pipes_devices_and_links_in_a_circle_are_refused(small, tmp_path, verify):
    shutil.copytree(small, tmp_path / "data")
    inside = tmp_path / "data" / "train" / "n00001"
    pipe, device, other = inside / "z.jpg", inside / "zero.png", inside / "linked.png"
    other.symlink_to(next(small.rglob("*.PNG")))
    folder2lmdb.main(["-f", str(tmp_path / "data"), "--quiet", *verify])  # links to files are fine
    assert len(ImageFolderLMDB(tmp_path / "data" / "train.lmdb")) == 7
    again = ["-f", str(tmp_path / "data"), "--quiet", "--overwrite", *verify]
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"z\.jpg: it is not a regular file"):
        folder2lmdb.main(again)
    pipe.unlink()
    device.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"zero\.png: it is not a regular file"):
        folder2lmdb.main(again)
    device.unlink()
    (inside / "gone.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"cannot read .*gone\.png: No such file"):
        folder2lmdb.main(again)
    (inside / "gone.png").unlink()
    for link, target in (("up", ".."), ("self", "."), ("one", "../n00002")):
        (inside / link).symlink_to(target)
    (inside.parent / "n00002" / "two").symlink_to("../n00001")
    for link in ("up", "self", "one/two"):
        with pytest.raises(InputError, match=r"is a link to a folder that it lies in"):
            folder2lmdb.main(again)
        (inside / link).unlink()
    folder2lmdb.main(again)
    assert len(ImageFolderLMDB(tmp_path / "data" / "train.lmdb")) == 9  # those of n00002 twice


def test_wrong_folders_are_answered_with_one_line(small, tmp_path):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "hole" / "train" / "n00000").mkdir(parents=True)
    for words, message in [
        (["-f", tmp_path / "none"], "there is no folder"),
        (["-f", small, "-s", "test"], "there is no folder"),
        (["-f", tmp_path / "empty"], "no class folders"),
        (["-f", tmp_path / "hole"], "no images in 1 of the class folders"),
        (["-f", small, "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["-f", small / "train", "-s", "../train"], "--split"),
    ]:
        with pytest.raises((InputError, FileNotFoundError), match=message):
            folder2lmdb.main([*map(str, words), "--quiet"])


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("procs", [0, 2])
def test_signals_leave_nothing_behind(small, tmp_path, sent, code, procs):
    # each image takes a second to read
    shutil.copytree(small, tmp_path / "data")
    slow = "import time; from univ.utils import folder2lmdb as f; read = f.read_image_file\n"
    slow += "f.read_image_file = lambda path: (time.sleep(1), read(path))[1]\nf.cli.run(f.main)"
    words = [sys.executable, "-c", slow, "-f", tmp_path / "data", "-p", str(procs)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT)
    deadline = time.monotonic() + 20
    while not list((tmp_path / "data").glob(".train.lmdb.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    if procs:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == code and "Traceback" not in printed
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train"]
