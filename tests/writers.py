"""The commands that write files, on inputs made in seconds: for tests of full disks, links and devices."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from image_files import make_image_folder
from synthetic_results import write_probe_agreement, write_scores, write_subgroups

import cifar10_training
import compare_probes
import func
import inversion
import rep
import subgroup_sim
import train_probe
from univ import files
from univ.data import open_images
from univ.models import build_model, checkpoints
from univ.show import plots
from univ.utils import folder2lmdb, imagenet50, labels_csv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
report = importlib.import_module("report")

ARCHS = ("vgg11", "resnet10")


@dataclass(frozen=True)
class Command:
    """A command that writes below a folder.

    Attributes:
        words: of the folder.
        again: the words that continue what a failed run has begun, where they are others.
        old: files that are there before, by name, and stay whole.
        volatile: patterns of files whose content differs between runs.
    """

    main: Callable[[list[str]], None]
    words: Callable[[Path], list[object]]
    again: tuple[str, ...] = ()
    old: dict[str, bytes] = field(default_factory=dict)
    volatile: tuple[str, ...] = ()


def make_inputs(root: Path) -> None:
    """What the commands read: random networks, inverted images, images in a folder and an LMDB file, a study."""
    images = open_images("digits")
    for number, arch in enumerate(ARCHS):
        model = build_model(arch, "digits", seed=number)
        checkpoints.save_checkpoint(root / f"cnns/digits/eps1/{arch}.pt", model, epoch=1)
        targets = torch.arange(20) + number
        files.save_torch(root / f"inverted/{arch}_eps1.pt", torch.stack([images[int(target)][0] for target in targets]))
        table = pd.DataFrame({"target_index": targets, "target_label": images.labels[targets]})
        table.to_csv(root / f"inverted/{arch}_eps1.csv", index=False)
        probe = ["-m", root / f"cnns/digits/eps1/{arch}.pt", "-d", "digits", "--epochs", 1, "-w", 0, "--device", "cpu"]
        train_probe.main([*map(str, probe), "--runs", str(root / "runs"), "--quiet"])
    for split in ("train", "val"):
        make_image_folder(root / "images" / split, num_classes=100, per_class=2)
        folder2lmdb.main(["-f", str(root / "images"), "-s", split, "--quiet"])
    write_subgroups(root / "study")
    write_probe_agreement(root / "study")
    write_scores(root / "few", eps=("eps1",), inputs=("standard",), ks=(10,))
    cache = ["-d", "digits", "-m", "digits", "-o", "eps1", "--model-names", *ARCHS, "--model-dir", root / "cnns"]
    cache += ["--index-file-dir", root / "indices", "--cache-dir", root / "cache", "--no-comparisons", "--quiet"]
    rep.main([*map(str, cache), "--device", "cpu", "--workers", "0"])


def commands(inputs: Path) -> dict[str, Command]:
    """Every command that writes, but the downloads."""
    one, common = inputs / "cnns/digits/eps1/vgg11.pt", ["--device", "cpu", "--quiet"]
    models = ["-d", "digits", "-m", "digits", "-o", "eps1", "--model-names", *ARCHS, "--model-dir", inputs / "cnns"]
    models += ["--inverted-imgs-dir", inputs / "inverted", "--num-inputs", 20, "--workers", 0, *common]
    train = ["--dataset", "digits", "-m", "vgg11", "-b", 256, "-e", 2, "-k", 1, "-w", 0, *common]
    table = "model,dataset,acc,loss,trained_eps,attack_lr,attack_eps,timestamp\n"

    def compared(folder: Path) -> list[object]:
        return [*models, "--results", folder, "--index-file-dir", folder / "indices"]

    return {
        "train": Command(cifar10_training.main, lambda folder: [*train, "-s", folder], ("--resume",), volatile=("*",)),
        "evaluate": Command(
            cifar10_training.main,
            lambda folder: [*train, "-t", 0, "-v", one, "-p", 0, "--results-file", folder / "accuracy.csv"],
            old={"accuracy.csv": (table + "x" * (4090 - len(table)) + "\n").encode()},  # a page of the disk but 5 bytes
            volatile=("accuracy.csv",),
        ),
        "invert": Command(
            inversion.main,
            lambda folder: [
                "-d",
                "digits",
                "-m",
                "vgg11",
                "-e",
                "eps1",
                "-n",
                16,
                "-u",
                100,
                "--iterations",
                1,
                "-b",
                8,
                "--model-dir",
                one.parent,
                "-i",
                folder,
                "--workers",
                0,
                "--overwrite",
                *common,
            ],
            old={"vgg11_eps1.pt": b"old", "vgg11_eps1.csv": b"old", "vgg11_eps1.png": b"old"},
            volatile=("*.json",),
        ),
        "rep": Command(
            rep.main,
            lambda folder: [*compared(folder), "-r", "cka", "proc", "--ci", "--overwrite", "--cache-dir", folder / "c"],
            old={
                "cka/standard/10000/digits/cka_eps1_0.csv": b"old",
                "cka/standard/10000/digits/cka_eps1_0.json": b"{}",
            },
            volatile=("*.json", "c/*"),
        ),
        "func": Command(
            func.main,
            lambda folder: [*compared(folder), "-f", "dis", "-i", 1, "--cache-dir", folder / "c"],
            volatile=("*.json", "c/*"),
        ),
        "probe": Command(
            train_probe.main,
            lambda folder: [
                "-m",
                one,
                "-d",
                "digits",
                "--epochs",
                2,
                "-w",
                0,
                "--num-probes",
                2,
                "--runs",
                folder,
                *common,
            ],
            volatile=("*",),
        ),
        "compare probes": Command(
            compare_probes.main,
            lambda folder: ["--runs", inputs / "runs", "--out", folder / "probes.csv", "--overwrite", *common],
            old={"probes.csv": b"old", "probes.json": b"{}"},
            volatile=("*.json",),
        ),
        "subgroups": Command(
            subgroup_sim.main,
            lambda folder: [
                "--cache-dir",
                inputs / "cache",
                "--dataset",
                "digits",
                "--eps",
                "eps1",
                "--measures",
                "cka",
                "proc",
                "--results",
                folder,
                "--workers",
                0,
                *common,
            ],
            volatile=("*.json",),
        ),
        "plots": Command(
            plots.main,
            lambda folder: ["--results", inputs / "study", "--figs", folder, "--only", "rep_vs_pred_sim", "--quiet"],
            old={"rep_vs_pred_digits_standard.pdf": b"old", "rep_vs_pred_digits_standard.png": b"old"},
        ),
        "report": Command(
            report.main,
            lambda folder: ["--results", inputs / "few", "--data", inputs, "--out", folder / "report.html", "--quiet"],
            old={"report.html": b"old"},
            volatile=("report.html",),
        ),
        "pack": Command(
            folder2lmdb.main,
            lambda folder: ["-f", inputs / "images", "--out", folder, "--overwrite", "--quiet"],
            old={"train.lmdb": b"old"},
        ),
        "pack with readers": Command(
            folder2lmdb.main,
            lambda folder: ["-f", inputs / "images", "--out", folder, "--quiet", "-p", 2, "--verify"],
        ),
        "labels": Command(
            labels_csv.main,
            lambda folder: [inputs / "images/train.lmdb", "--out", folder / "labels.csv", "--overwrite", "--quiet"],
            old={"labels.csv": b"old"},
        ),
        "subset": Command(
            imagenet50.main,
            lambda folder: ["-f", inputs / "images", "-s", "val", "--out", folder, "--quiet"],
        ),
    }
