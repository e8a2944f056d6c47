"""cifar10_training.py and imagenet_training.py: what they write, what they refuse, and that a kill costs nothing."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from disks import make_device

import cifar10_training
import imagenet_training
from univ import results
from univ.attacks import AutoAttack
from univ.data import open_training
from univ.errors import InputError
from univ.models import checkpoints, load_model
from univ.training import flags

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--dataset", "digits", "-m", "vgg11", "-b", "256", "-k", "0", "--quiet", "--device", "cpu"]


pytestmark = pytest.mark.usefixtures("one_thread")


def refused(main, argv, capsys) -> str:
    """The message of a run that ends with wrong input, whether argparse or we found it."""
    try:
        main([str(word) for word in argv])
    except SystemExit as error:
        assert error.code == 2
        return capsys.readouterr().err.splitlines()[-1]
    except (InputError, FileNotFoundError) as error:
        return str(error)
    raise AssertionError("the run was not refused")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with one epoch of adversarial training."""
    folder = tmp_path_factory.mktemp("cnns") / "eps1"
    cifar10_training.main([*QUICK, "-s", str(folder), "-e", "1", "-a", "1", "-p", "1"])
    return folder


def test_defaults_are_the_published_ones():
    cifar10, imagenet = cifar10_training.parse_args([]), imagenet_training.parse_args([])
    shared = {"adv": 0, "constraint": "2", "epochs": 90, "model_lr": 0.1, "steps": 3, "steplr": 30, "train": 1}
    shared |= {"workers": 4, "results_file": None, "eval": None, "schedule": "step", "use_best": 1}
    for args in (cifar10, imagenet):
        assert {name: getattr(args, name) for name in shared} == shared
    assert (cifar10.batch, cifar10.ckpt, cifar10.lr, cifar10.eps) == (512, 15, 0.5, 1)
    assert (imagenet.batch, imagenet.ckpt, imagenet.lr, imagenet.eps, imagenet.num) == (256, 5, 2, 3, 1000)
    assert flags.arch_of(cifar10, "cifar10") == "resnet18"
    assert flags.arch_of(imagenet, "imagenet") == "tiny_vit_5m"
    assert (str(cifar10.save), str(imagenet.save)) == ("data/cnns/cifar10", "data/cnns/imagenet")


def test_training_leaves_the_files_it_should(trained):
    names = {path.name for path in trained.iterdir()}
    expected = {"vgg11.pt", "checkpoint.pt.latest", "checkpoint.pt.best", "log.jsonl", "args.json", "tensorboard"}
    assert names == expected
    made = json.loads((trained / "args.json").read_text())
    assert made["arguments"]["model"] == "vgg11" and made["arguments"]["weight_decay"] == 5e-4 and made["commit"]
    (record,) = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert record["epoch"] == 1 and record["best"] and "robust_accuracy" in record
    model = load_model("vgg11", "digits", trained / "vgg11.pt")
    assert not model.training


def test_evaluation_prints_and_appends(trained, capsys, tmp_path):
    table = tmp_path / "results" / "accuracy.csv"
    evaluate = ["--dataset", "digits", "-t", "0", "-v", str(trained / "vgg11.pt"), "--results-file", str(table)]
    evaluate += ["--quiet", "--device", "cpu"]
    cifar10_training.main([*evaluate, "-o", "1/2", "-l", "0.25", "-p", "1"])
    cifar10_training.main([*evaluate, "-c", "inf", "-o", "8/255", "-l", "2/255", "-p", "1", "-m", "vgg11"])
    printed = capsys.readouterr().out
    assert "vgg11 on 360 images of digits" in printed and "robust accuracy" in printed
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == [
        "model",
        "dataset",
        "acc",
        "loss",
        "trained_eps",
        "attack_lr",
        "attack_eps",
        "timestamp",
    ]
    assert [(row["attack"], row["norm"]) for row in rows[:2]] == [("none", "none"), ("pgd", "l2")]
    assert [(row["attack_lr"], row["attack_eps"]) for row in rows[:3]] == [("0", "0"), ("0.25", "0.5"), ("0", "0")]
    assert float(rows[3]["attack_eps"]) == pytest.approx(8 / 255)
    assert {(row["model"], row["dataset"], row["trained_eps"]) for row in rows} == {("vgg11", "digits", "eps1")}
    assert all(0 <= float(row["acc"]) <= 100 for row in rows)
    assert float(rows[1]["acc"]) <= float(rows[0]["acc"])


def test_evaluation_under_autoattack(trained, capsys, tmp_path, monkeypatch):
    """The table says which attack; a table from before there was a choice goes on with PGD alone."""
    monkeypatch.setattr(flags, "AutoAttack", functools.partial(AutoAttack, steps=2, targets=1, queries=3))
    table, older = tmp_path / "new.csv", tmp_path / "older.csv"
    older.write_text(",".join(flags.PUBLISHED_COLUMNS) + "\n")
    evaluate = ["--dataset", "digits", "-t", "0", "-v", str(trained / "vgg11.pt"), "--quiet", "--device", "cpu"]
    for attack in ("pgd", "apgd", "autoattack"):
        words = [*evaluate, "--attack", attack, "-c", "inf", "-o", "8/255", "-p", "1", "--results-file"]
        cifar10_training.main([*words, str(table)])
        if attack == "pgd":
            cifar10_training.main([*words, str(older)])
        else:
            assert "older.csv has no column for --attack" in refused(cifar10_training.main, [*words, older], capsys)
    assert "apgd-ce + apgd-t + fab-t + square" in capsys.readouterr().out
    found = results.load_evaluations([table])
    assert found["attack"].tolist() == ["pgd", "apgd", "none", "autoattack"] and found["norm"][3] == "linf"
    assert found["accuracy"][3] <= found["accuracy"][1] <= found["accuracy"][0] < found["accuracy"][2]
    assert results.load_evaluations([older])["attack"].tolist() == ["none", "pgd"]


def test_the_architecture_is_read_from_name_or_content(trained):
    parse = cifar10_training.parse_args
    named = parse(["--dataset", "digits", "-t", "0", "-v", str(trained / "vgg11.pt")])
    assert flags.arch_of(named, "digits") == "vgg11"
    stored = parse(["--dataset", "digits", "-t", "0", "-v", str(trained / "checkpoint.pt.best")])
    assert flags.arch_of(stored, "digits") == "vgg11"
    asked = parse(["--dataset", "digits", "-t", "0", "-m", "resnet10", "-v", str(trained / "vgg11.pt")])
    assert flags.arch_of(asked, "digits") == "resnet10"


def test_a_complete_run_is_left_alone_and_its_model_comes_back(trained):
    before = (trained / "checkpoint.pt.latest").stat().st_mtime_ns
    (trained / "vgg11.pt").unlink()
    argv = [*QUICK, "-s", str(trained), "-e", "1", "-a", "1", "-p", "1", "--resume"]
    cifar10_training.main(argv)
    assert (trained / "vgg11.pt").exists()
    assert (trained / "checkpoint.pt.latest").stat().st_mtime_ns == before


def test_a_checkpoint_can_be_trained_on_from(trained, tmp_path):
    cifar10_training.main([*QUICK, "-s", str(tmp_path), "-e", "2", "-v", str(trained / "checkpoint.pt.latest")])
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [2]
    assert (tmp_path / "vgg11.pt").exists()


WRONG = [  # words of the command line, {trained} and {tmp} folders, and what the message names
    ("-t 0", "-v"),
    ("-t 0 -v {tmp}", "folder"),
    ("-v {tmp}/missing.pt", "no file"),
    ("--dataset digits -t 0 -m resnet10 -v {tmp}/resnet18.pt", "resnet18.pt"),
    ("--dataset digits -s {tmp}/new -m resnet9", "resnet9"),
    ("-t 0 -v {trained}/vgg11.pt", "vgg11"),  # an architecture CIFAR-10 does not have
    ("--dataset digits -t 0 -m resnet10 -v {trained}/vgg11.pt", "resnet10"),
    ("-o wide", "--eps"),
    ("-c 3", "--constraint"),
    ("--restarts 3", "--random-start"),
    ("-c fourier --random-start", "fourier"),
    ("--attack apgd", "-t 0"),
    ("-t 0 -v {trained}/vgg11.pt --attack autoattack -c unconstrained", "-c 2 or inf"),
    ("-t 0 -v {trained}/vgg11.pt --attack autoattack -o 0", "above 0"),
    ("--sync-bn --device cpu", "--sync-bn"),
    ("--results-file {tmp}/table.csv", "--results-file"),
    ("--resume -v {trained}/vgg11.pt", "--resume"),
    ("-s {tmp}/new -d {tmp}/nowhere --device cpu", "nowhere"),
    ("imagenet -s {tmp}/new -d {tmp}/nowhere --device cpu", "nowhere"),
    ("--dataset digits -s {tmp}/resnet18.pt", "--save"),
    ("--dataset digits -m vgg11 -s /proc/nowhere", "cannot write"),
    ("--dataset digits -m vgg11 -s {tmp}/new -e 1 -v {trained}/checkpoint.pt.latest", "-e 1"),
]


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_wrong_input_is_refused_before_anything_starts(words, named, trained, tmp_path, capsys):
    (tmp_path / "resnet18.pt").write_bytes(b"no checkpoint")
    main = imagenet_training.main if words.startswith("imagenet") else cifar10_training.main
    argv = words.removeprefix("imagenet ").format(trained=trained, tmp=tmp_path).split()
    assert named in refused(main, argv, capsys)
    assert not (tmp_path / "new").exists()


def test_a_table_with_other_columns_is_refused(trained, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    evaluate = ["--dataset", "digits", "-t", "0", "-v", trained / "vgg11.pt", "--results-file", table, "-p", "0"]
    assert "a,b" in refused(cifar10_training.main, [*evaluate, "--quiet"], capsys)
    assert table.read_text() == "a,b\n1,2\n"


def test_an_unwritable_table_is_found_before_the_evaluation(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flags, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    make_device(tmp_path / "device")
    for place in ("/proc/nowhere/a.csv", tmp_path / "device", tmp_path, tmp_path / "file" / "a.csv", tmp_path / "loop",
                  tmp_path / ("x" * 300)):  # fmt: skip
        evaluate = ["--dataset", "digits", "-t", "0", "-v", trained / "vgg11.pt", "--results-file", place]
        assert str(place) in refused(cifar10_training.main, [*evaluate, "--quiet"], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "file", "loop"]
    assert not (tmp_path / "file").read_bytes()


def test_work_in_save_is_not_overwritten_unasked(trained, tmp_path, capsys):
    argv = [*QUICK, "-s", trained, "-e", "1"]
    assert "--overwrite" in refused(cifar10_training.main, argv, capsys)
    other_batch = [*argv, "-b", "128", "--resume", "-a", "1", "-p", "1"]
    assert "batch_size was 256, now 128" in refused(cifar10_training.main, other_batch, capsys)
    assert "architecture was vgg11" in refused(cifar10_training.main, [*argv, "-m", "resnet10", "--resume"], capsys)
    (tmp_path / "vgg11.pt").write_bytes(b"a published checkpoint")
    assert "--overwrite" in refused(cifar10_training.main, [*QUICK, "-s", tmp_path, "-e", "1"], capsys)


def test_another_architecture_may_follow_a_complete_run(trained, tmp_path):
    """Both models of `-s data/cnns/digits/eps1` end up there under their names; nothing of the first is lost."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    cifar10_training.main([*QUICK, "-s", str(tmp_path), "-e", "1", "-m", "resnext14_4x32d"])
    assert load_model("resnext14_4x32d", "digits", tmp_path / "resnext14_4x32d.pt")
    assert (tmp_path / "vgg11.pt").read_bytes() == (trained / "vgg11.pt").read_bytes()
    moved = {path.name for path in (tmp_path / "vgg11_run").iterdir()}
    assert moved == {"args.json", "log.jsonl", "tensorboard", checkpoints.LATEST, checkpoints.BEST}


def test_overwrite_begins_anew(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "9_checkpoint.pt").write_bytes(b"of the earlier run")
    cifar10_training.main([*QUICK, "-s", str(tmp_path), "-e", "1", "--overwrite"])
    assert (tmp_path / "vgg11.pt").read_bytes() != (trained / "vgg11.pt").read_bytes()
    assert not (tmp_path / "9_checkpoint.pt").exists() and not (tmp_path / "vgg11_run").exists()


@pytest.fixture
def tiny_lmdb(tmp_path) -> Path:
    """train.lmdb and val.lmdb of a few noise images in two classes."""
    import numpy as np
    from PIL import Image

    from univ.utils import folder2lmdb

    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in ("n01", "n02"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        folder2lmdb.main(["-f", str(tmp_path / "images"), "-s", split])
    return tmp_path / "images"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "tiny_vit_5m"])
def test_imagenet_training_and_evaluation(arch, tiny_lmdb, tmp_path, capsys):
    save = tmp_path / "eps3"
    common = ["-d", str(tiny_lmdb), "-n", "50", "-w", "1", "--quiet", "--device", "cpu", "-b", "4"]
    imagenet_training.main([*common, "-m", arch, "-s", str(save), "-a", "1", "-e", "1", "-p", "1"])
    assert {f"{arch}.ckpt", "checkpoint.pt.best"} <= {path.name for path in save.iterdir()}
    (record,) = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    capsys.readouterr()
    imagenet_training.main([*common, "-t", "0", "-v", str(save / f"{arch}.ckpt"), "-p", "1"])
    printed = capsys.readouterr().out
    assert f"{arch} on 4 images of imagenet50" in printed
    assert f"robust accuracy {record['robust_accuracy']:.2f} %, loss {record['robust_loss']:.4f}" in printed


# killed


def command(folder: Path, *words: str) -> list[str]:
    argv = ["cifar10_training.py", *QUICK, "-s", str(folder), "-e", "2", "--schedule", "onecycle", *words]
    return [sys.executable, *argv]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("straight")
    cifar10_training.main(command(folder)[2:])
    return checkpoints.read_weights(folder / checkpoints.LATEST)


def assert_resumes_to(expected: dict[str, torch.Tensor], folder: Path) -> None:
    cifar10_training.main(command(folder, "--resume")[2:])
    found = checkpoints.read_weights(folder / checkpoints.LATEST)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    epochs = [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert epochs == [1, 2] and (folder / "vgg11.pt").exists()


def test_kill_after_an_epoch_and_resume(uninterrupted, tmp_path):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment())
    deadline = time.monotonic() + 120
    while not (tmp_path / checkpoints.LATEST).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_resumes_to(uninterrupted, tmp_path)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one_epoch")
    cifar10_training.main([*QUICK, "-s", str(folder), "-e", "1"])
    return folder


def test_resuming_on_other_images_says_what_differs(one_epoch, tmp_path, monkeypatch):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / checkpoints.LATEST).read_bytes()
    resume = [*QUICK, "-s", str(tmp_path), "-e", "2", "--resume"]
    with pytest.raises(InputError, match=r"--resume: .*augmentation \(--no-augment\) was on, now off$"):
        cifar10_training.main([*resume, "--no-augment"])
    with pytest.raises(InputError, match=r"decoding \(--fast-images\) was exact, now fast"):
        cifar10_training.main([*resume, "--fast-images"])
    open_training = flags.open_training

    def one_pixel_changed(*args, **options):
        train, val = open_training(*args, **options)
        train.pixels[700, 0, 5, 5] ^= 1
        return train, val

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"training images was \w{16}, now \w{16}$"):
        patch.setattr(flags, "open_training", one_pixel_changed)
        cifar10_training.main(resume)
    assert (tmp_path / checkpoints.LATEST).read_bytes() == before
    cifar10_training.main(resume)
    assert checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)["epoch"] == 2


KILLED_WHILE_WRITING = """
import io, os, signal, sys
import torch
import cifar10_training

save, written = torch.save, []

def half_a_checkpoint(content, file):
    written.append(file)
    if len(written) < 2:
        return save(content, file)
    whole = io.BytesIO()                        # of the second epoch
    save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = half_a_checkpoint
cifar10_training.main(sys.argv[1:])
"""


def test_kill_in_the_middle_of_writing_a_checkpoint_and_resume(uninterrupted, tmp_path):
    argv = [sys.executable, "-c", KILLED_WHILE_WRITING, *command(tmp_path)[2:]]
    killed = subprocess.run(argv, cwd=ROOT, env=environment())
    assert killed.returncode == -signal.SIGKILL
    assert checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)["epoch"] == 1
    assert_resumes_to(uninterrupted, tmp_path)


def test_a_damaged_checkpoint_costs_the_epochs_since_the_one_before(uninterrupted, tmp_path):
    keep = ["-k", "1"]
    cifar10_training.main(command(tmp_path, *keep)[2:])
    for name in (checkpoints.LATEST, checkpoints.BEST, "2_checkpoint.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:5000])
    cifar10_training.main(command(tmp_path, *keep, "--resume")[2:])
    found = checkpoints.read_weights(tmp_path / checkpoints.LATEST)
    assert all(torch.equal(found[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.slow
def test_sigterm_ends_with_143_and_leaves_no_half_written_file(tmp_path):
    process = subprocess.Popen([*command(tmp_path), "-e", "500"], cwd=ROOT, env=environment())
    while not (tmp_path / checkpoints.LATEST).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)["epoch"] >= 1


def test_a_run_with_nothing_to_resume_begins(tmp_path):
    cifar10_training.main([*QUICK, "-s", str(tmp_path), "-e", "1", "--resume"])
    assert (tmp_path / "vgg11.pt").exists()


def test_the_best_epoch_can_be_chosen_on_held_out_training_images(tmp_path):
    args = cifar10_training.parse_args([*QUICK, "--select-on", "held-out", "-s", str(tmp_path)])
    data = flags.open_data(args, "digits")
    whole, _ = open_training("digits")
    assert (len(data.train), len(data.val)) == (1437 - 144, 144)
    # every image is in one of the two
    pixels = torch.cat([data.train.pixels, data.val.pixels]).flatten(1)
    assert torch.equal(pixels.unique(dim=0), whole.pixels.flatten(1).unique(dim=0))
    cifar10_training.main([*QUICK, "--select-on", "held-out", "-e", "1", "-s", str(tmp_path)])
    assert (tmp_path / "vgg11.pt").exists()


def test_more_classes_than_the_data_set_has_are_refused(tmp_path, monkeypatch, capsys):
    def open_with_an_eleventh_class(name, *_, **__):
        train, val = open_training(name)
        train.labels = train.labels.clone()
        train.labels[0] = 10
        return train, val

    monkeypatch.setattr(flags, "open_training", open_with_an_eleventh_class)
    message = refused(cifar10_training.main, [*QUICK, "-s", tmp_path, "-e", "1"], capsys)
    assert "11 classes" in message and "digits has 10" in message
