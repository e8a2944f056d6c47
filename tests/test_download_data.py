"""Fetching the published data, from a server on this machine that mimics both services and cuts connections."""

import dataclasses
import importlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from disks import held as held_below
from disks import run as disks_run
from disks import small_disk
from published import serve, zip_of

from univ.errors import InputError
from univ.models.published import Place, recognise

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
download_data = importlib.import_module("download_data")


def content(name: str, size: int) -> bytes:
    """Reproducible bytes that stand for a published file."""
    return np.random.default_rng(sum(name.encode())).bytes(size)


def tar_of(name: str, data: bytes) -> bytes:
    """An archive of a file, and of a link that leads out of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("cifar10/eps1/resnet50.pt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


NETWORKS = ("resnet18_l2_eps3", "resnet18_l2_eps0.25", "resnet18_linf_eps4.0", "densenet_l2_eps3", "shufflenet_l2_eps3")
HUGGING_FACE = {f"{name}.ckpt": content(name, 300_000) for name in NETWORKS} | {"README.md": b"# Robust models"}
ZIPPED = {
    "eps1/resnet18.pt": content("a", 50_000),
    "eps1/vgg16_bn.pth": content("b", 50_000),
    "../../evil/eps1/densenet161.pt": content("c", 1000),
    "eps1/notes.txt": b"notes",
    "eps1/mystery.pt": b"?",
}
MODELS = {
    "cifar10_eps1.zip": zip_of(ZIPPED),
    "cifar10_more.tar.gz": tar_of("eps3/wide_resnet50_2.pt", content("d", 50_000)),
    "imagenet100_eps025_vgg16_bn.ckpt": content("e", 40_000),
    "imagenet50_resnet50_eps3.ckpt": content("f", 40_000),
    "something.pt": content("g", 10),
}
INVERTED = {"imagenet_resnet18_eps3.pt": content("h", 200_000), "cifar10-vgg16-eps1.npy": content("i", 20_000)}
ZENODO = {"1": ("Checkpoints of robust networks", MODELS), "2": ("Inverted images", INVERTED)}
FETCHED = HUGGING_FACE | MODELS | INVERTED
OF_EACH_SERVICE = pytest.mark.parametrize("name", ["resnet18_l2_eps3.ckpt", "imagenet_resnet18_eps3.pt"])
OF_EACH_KIND = pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18_l2_eps3.ckpt", ["--dataset", "imagenet", "--what", "models", "--source", "huggingface"]),
        ("imagenet_resnet18_eps3.pt", ["--dataset", "imagenet", "--what", "inverted"]),
        ("cifar10_eps1.zip", ["--dataset", "cifar10", "--what", "models"]),
    ],
)


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(download_data.time, "sleep", lambda seconds: None)
    with serve(ZENODO, HUGGING_FACE) as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        yield service


def run(root: Path, *words: str) -> None:
    download_data.main(["--records", "1", "2", "--root", str(root), *words])


def held(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in held_below(root).items() if not name.startswith(".downloads")}


def fails(root: Path, *words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(root, *words)
    assert stop.value.code == 1


def test_everything_lands_in_the_tree_under_our_names(service, tmp_path):
    run(tmp_path)
    assert held(tmp_path) == {
        "cnns/imagenet/eps3/resnet18.ckpt": HUGGING_FACE["resnet18_l2_eps3.ckpt"],
        "cnns/imagenet/eps025/resnet18.ckpt": HUGGING_FACE["resnet18_l2_eps0.25.ckpt"],
        "cnns/imagenet/eps3/densenet161.ckpt": HUGGING_FACE["densenet_l2_eps3.ckpt"],
        "cnns/cifar10/eps1/resnet18.pt": ZIPPED["eps1/resnet18.pt"],
        "cnns/cifar10/eps1/vgg16.pt": ZIPPED["eps1/vgg16_bn.pth"],
        "cnns/cifar10/eps1/densenet161.pt": ZIPPED["../../evil/eps1/densenet161.pt"],
        "cnns/cifar10/eps3/wide_resnet50_2.pt": content("d", 50_000),
        "cnns/imagenet100/eps025/vgg16_bn.ckpt": MODELS["imagenet100_eps025_vgg16_bn.ckpt"],
        "cnns/imagenet50/eps3/resnet50.ckpt": MODELS["imagenet50_resnet50_eps3.ckpt"],
        "imagenet/inverted/resnet18_eps3.pt": INVERTED["imagenet_resnet18_eps3.pt"],
        "cifar10/inverted/vgg16_eps1.npy": INVERTED["cifar10-vgg16-eps1.npy"],
    }
    assert not (tmp_path.parent / "evil").exists()


def test_a_second_run_fetches_nothing(service, tmp_path, capsys):
    run(tmp_path)
    service.ranges.clear()
    run(tmp_path)
    assert service.ranges == []
    assert "in 9 files, 9 there" in capsys.readouterr().out


def test_a_dry_run_lists_files_and_sizes_and_writes_nothing(service, tmp_path, capsys):
    run(tmp_path, "--dry-run", "--dataset", "imagenet", "--what", "models")
    printed = capsys.readouterr().out
    line = rf"0\.30 MB  huggingface +densenet_l2_eps3\.ckpt -> {tmp_path}/cnns/imagenet/eps3/densenet161"
    assert re.search(line, printed)
    assert "in 3 files, 0 there" in printed and re.search(r"needed, [\d.]+ GB free", printed)
    assert list(tmp_path.iterdir()) == [] and service.ranges == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--what models --eps eps025", {"imagenet/eps025/resnet18.ckpt", "imagenet100/eps025/vgg16_bn.ckpt"}),
        ("--what models --dataset cifar10 --eps eps3", {"cifar10/eps3/wide_resnet50_2.pt"}),
        ("--what models --model-names densenet161 --source huggingface", {"imagenet/eps3/densenet161.ckpt"}),
        ("--what inverted --dataset imagenet", {"imagenet/inverted/resnet18_eps3.pt"}),
    ],
)
def test_only_what_was_chosen_is_fetched(service, tmp_path, words, expected):
    run(tmp_path, *words.split())
    assert {name.removeprefix("cnns/") for name in held(tmp_path)} == expected


def test_more_of_an_archive_can_be_chosen_later(service, tmp_path):
    run(tmp_path, "--dataset", "cifar10", "--what", "models", "--model-names", "resnet18")
    assert list(held(tmp_path)) == ["cnns/cifar10/eps1/resnet18.pt"]
    service.ranges.clear()
    run(tmp_path, "--dataset", "cifar10", "--what", "models", "--model-names", "resnet18")
    assert service.ranges == []
    run(tmp_path, "--dataset", "cifar10", "--what", "models")
    assert len(held(tmp_path)) == 4


@OF_EACH_KIND
def test_a_cut_connection_is_continued(service, tmp_path, name, words):
    service.cuts[name] = 3
    run(tmp_path, *words)
    asked = [header for file, header in service.ranges if file == name]
    assert len(asked) == 4 and asked[0] is None and all(header.startswith("bytes=") for header in asked[1:])
    size = len(FETCHED[name])
    assert size <= service.sent[name] < size + 3 * (1 << 14), "what had come was not sent again"
    assert len(held(tmp_path)) in (1, 3, 4)


@OF_EACH_SERVICE
def test_a_later_run_continues_what_an_earlier_one_left(service, tmp_path, name, monkeypatch):
    monkeypatch.setattr(download_data, "ATTEMPTS", 1)
    service.cuts[name] = 10
    fails(tmp_path)
    assert len(held(tmp_path)) == 10, "the other files came all the same"
    (part,) = (tmp_path / ".downloads").rglob("*.part")
    assert part.name == f"{name}.part" and part.stat().st_size > 0
    service.cuts.clear()
    service.ranges.clear()
    already = part.stat().st_size
    run(tmp_path)
    assert service.ranges == [(name, f"bytes={already}-")]
    assert len(held(tmp_path)) == 11


@pytest.mark.parametrize("left", [0, 1])
def test_a_part_that_is_whole_or_too_long_is_no_trouble(service, tmp_path, left):
    """A run may be killed after the last byte; something else may have left more."""
    data = FETCHED["imagenet_resnet18_eps3.pt"]
    part = tmp_path / ".downloads/zenodo_2/imagenet_resnet18_eps3.pt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data + bytes(left))
    run(tmp_path, "--what", "inverted", "--dataset", "imagenet")
    assert held(tmp_path) == {"imagenet/inverted/resnet18_eps3.pt": data}
    assert len(service.ranges) == left


@OF_EACH_SERVICE
def test_a_server_that_ignores_ranges_sends_all_again(service, tmp_path, name):
    service.no_ranges = True
    service.cuts[name] = 1
    run(tmp_path)
    assert len(held(tmp_path)) == 11


@OF_EACH_KIND
def test_a_wrong_checksum_places_nothing(service, tmp_path, name, words):
    service.corrupt.add(name)
    fails(tmp_path)
    assert len(held(tmp_path)) == (8 if name.endswith("zip") else 10)
    service.corrupt.clear()
    run(tmp_path)
    assert len(held(tmp_path)) == 11


def test_a_users_own_file_is_kept_unless_told_otherwise(service, tmp_path):
    published = {
        tmp_path / "cnns/imagenet/eps3/resnet18.ckpt": HUGGING_FACE["resnet18_l2_eps3.ckpt"],
        tmp_path / "cnns/cifar10/eps1/resnet18.pt": ZIPPED["eps1/resnet18.pt"],
    }
    for own in published:
        own.parent.mkdir(parents=True)
        own.write_bytes(b"mine")
    run(tmp_path)
    assert all(own.read_bytes() == b"mine" for own in published)
    (tmp_path / ".downloads/zenodo_1/cifar10_eps1.zip.json").unlink()
    run(tmp_path, "--overwrite")
    assert all(own.read_bytes() == data for own, data in published.items())


def test_a_full_disk_is_noticed_before_anything_is_fetched(service, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(download_data.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"1\.\d\d MB are needed in .*1\.00 MB are free: choose less with --what"):
        run(tmp_path)
    assert service.ranges == []


@OF_EACH_KIND
@pytest.mark.parametrize("room", [0, 100_000])
def test_a_disk_that_fills_up_is_one_line_and_the_next_run_continues(service, tmp_path, monkeypatch, name, words, room):
    """Another program may take what was free when the run began."""
    monkeypatch.setattr(download_data, "check_disk", lambda remotes, root: (0, 0))
    disk = tmp_path / "disk"
    with small_disk(disk) as resize:
        (disk / "mine").write_bytes(b"mine")
        resize(8192 + room)
        words = ["--records", "1", "2", "--root", str(disk), *words]
        ended = disks_run(download_data.main, words, tmp_path / "log", patched=True)
        ended.assert_refused()
        assert ended.code == 2 and f"cannot write {disk}" in ended.said
        assert not list(disk.rglob("*.tmp")) and (disk / "mine").read_bytes() == b"mine"
        begun = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) - 4
        assert begun > 0 or not room
        resize(64 << 20)
        service.sent.clear()
        ended = disks_run(download_data.main, words, tmp_path / "log", patched=True)
        assert ended.code == 0, ended.said
        whole = held(disk)
        assert whole.pop("mine") == b"mine" and len(whole) in (1, 3, 4)
        assert service.sent[name] <= len(FETCHED[name]), "what had come was fetched again"


def test_links_in_the_tree_are_written_through(service, tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere.ckpt"
    link = root / "cnns/imagenet/eps3/resnet18.ckpt"
    link.parent.mkdir(parents=True)
    elsewhere.write_bytes(b"old")
    link.symlink_to(elsewhere)
    run(root, "--dataset", "imagenet", "--what", "models", "--eps", "eps3", "--model-names", "resnet18", "--overwrite")
    assert link.is_symlink() and elsewhere.read_bytes() == HUGGING_FACE["resnet18_l2_eps3.ckpt"]


def test_a_choice_that_nothing_fits_is_said(service, tmp_path):
    with pytest.raises(InputError, match="nothing is published that fits"):
        run(tmp_path, "--dataset", "imagenet50", "--eps", "eps05")


def test_a_service_that_cannot_be_reached_or_a_missing_record_is_named(service, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot read the Zenodo record 99 .*404"):
        download_data.main(["--records", "99", "--source", "zenodo", "--root", str(tmp_path)])
    monkeypatch.setenv("HF_ENDPOINT", f"{service.url}/nowhere")
    with pytest.raises(InputError, match="cannot read Hugging Face's list of madrylab/robust-imagenet-models"):
        run(tmp_path)


def test_wrong_words_end_with_code_2(tmp_path):
    for words in (["--eps", "three"], ["--model-names", "resnet19"], ["--dataset", "mnist"]):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, *words)
        assert stop.value.code == 2


def test_the_script_runs_from_the_shell(service, tmp_path):
    command = [sys.executable, "scripts/download_data.py", "--records", "1", "--root", str(tmp_path), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cifar10_eps1.zip -> unpacked by name" in done.stdout
    assert "something.pt does not tell its place" in done.stderr


@pytest.mark.parametrize(
    ("path", "context", "place"),
    [
        ("wide_resnet50_2_l2_eps0.25.ckpt", "ImageNet", Place("models", "imagenet", "eps025", "wide_resnet50_2")),
        ("cnns/imagenet/eps0/densenet161.ckpt", "", Place("models", "imagenet", "eps0", "densenet161")),
        ("imagenet_eps3/wide_resnet50_4.ckpt", "", Place("models", "imagenet", "eps3", "wide_resnet50_4")),
        ("imagenet100/eps3/tiny_vit_5m.pt", "models", Place("models", "imagenet100", "eps3", "tiny_vit_5m")),
        ("cifar10/inverted/resnext50_32x4d_eps1.pt", "", Place("inverted", "cifar10", "eps1", "resnext50_32x4d")),
        ("imagenet50/resnet50_eps3.pt", "", Place("inverted", "imagenet50", "eps3", "resnet50")),
        ("CIFAR-10/eps025/vgg16_bn.pt", "", Place("models", "cifar10", "eps025", "vgg16")),
        ("imagenet/eps1/vgg16.pt", "", Place("models", "imagenet", "eps1", "vgg16_bn")),
        ("README.md", "ImageNet checkpoints", Place("models", "imagenet", None, None)),
        ("eps3.zip", "Inverted images for CIFAR-10", Place("inverted", "cifar10", "eps3", None)),
    ],
)
def test_a_name_tells_the_place(path, context, place):
    assert recognise(path, context) == place


@pytest.mark.parametrize(
    ("record", "name"),
    [("1", "../../../evil.zip"), ("1", "/evil.zip"), ("1", "a/../../../../evil.zip"), ("../../x", "a.zip")],
)
def test_a_published_file_is_staged_below_the_root(record, name, tmp_path):
    remote = download_data.Remote(f"zenodo {record}", name, "", 1, "md5:0", Place("models", "cifar10", "eps1", "vgg16"))
    for use in (remote.staged, remote.missing, lambda root: download_data.check_disk([remote], root)):
        with pytest.raises(InputError, match="file name"):
            use(tmp_path)
    nested = dataclasses.replace(remote, source="zenodo 1", name="models/a.zip")
    assert nested.staged(tmp_path) == tmp_path / ".downloads/zenodo_1/models/a.zip"
