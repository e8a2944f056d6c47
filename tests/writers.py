"""The commands that write files, on inputs made in seconds: for tests of full disks, links and devices."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    words: Callable[[Path], list[str]]
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
    one, common = inputs / "cnns/digits/eps1/vgg11.pt", "--device cpu --quiet"
    compare = f"-d digits -m digits -o eps1 --model-names {' '.join(ARCHS)} --model-dir {inputs}/cnns --num-inputs 20"
    compare += f" --inverted-imgs-dir {inputs}/inverted --workers 0 {common} --results {{0}} --index-file-dir {{0}}/i"
    train = f"--dataset digits -m vgg11 -b 256 -e 2 -k 1 -w 0 {common}"
    invert = (
        f"-d digits -m vgg11 -e eps1 -n 16 -u 100 --iterations 1 -b 8 --model-dir {one.parent} --workers 0 {common}"
    )
    table = "model,dataset,acc,loss,trained_eps,attack_lr,attack_eps,timestamp\n"
    page = table + "x" * (4090 - len(table)) + "\n"  # a page of the disk but 5 bytes
    scores = "cka/standard/10000/digits/cka_eps1_0"

    def command(main: Callable[[list[str]], None], words: str, *old: str, volatile: tuple[str, ...] = (), **more: Any):
        """Words with {0} for the folder; `old` files are there before."""
        before = {name: b"{}" if name.endswith(".json") else b"old" for name in old}
        options = {"old": before, "volatile": volatile} | more
        return Command(main, lambda folder: words.format(folder).split(), **options)

    return {
        "train": command(cifar10_training.main, f"{train} -s {{0}}", again=("--resume",), volatile=("*",)),
        "evaluate": command(
            cifar10_training.main,
            f"{train} -t 0 -v {one} -p 0 --results-file {{0}}/accuracy.csv",
            old={"accuracy.csv": page.encode()},
            volatile=("accuracy.csv",),
        ),
        "invert": command(
            inversion.main,
            f"{invert} {common} -i {{0}} --overwrite",
            *("vgg11_eps1.pt", "vgg11_eps1.csv", "vgg11_eps1.png"),
            volatile=("*.json",),
        ),
        "rep": command(
            rep.main,
            f"{compare} -r cka proc --ci --overwrite --cache-dir {{0}}/c",
            *(f"{scores}.csv", f"{scores}.json"),
            volatile=("*.json", "c/*"),
        ),
        "func": command(func.main, f"{compare} -f dis -i 1 --cache-dir {{0}}/c", volatile=("*.json", "c/*")),
        "probe": command(
            train_probe.main,
            f"-m {one} -d digits --epochs 2 -w 0 --num-probes 2 --runs {{0}} {common}",
            volatile=("*",),
        ),
        "compare probes": command(
            compare_probes.main,
            f"--runs {inputs}/runs --out {{0}}/probes.csv --overwrite {common}",
            *("probes.csv", "probes.json"),
            volatile=("*.json",),
        ),
        "subgroups": command(
            subgroup_sim.main,
            f"--cache-dir {inputs}/cache --dataset digits --eps eps1 --measures cka proc --results {{0}} --workers 0 "
            + common,
            volatile=("*.json",),
        ),
        "plots": command(
            plots.main,
            f"--results {inputs}/study --figs {{0}} --only rep_vs_pred_sim --quiet",
            *("rep_vs_pred_digits_standard.pdf", "rep_vs_pred_digits_standard.png"),
        ),
        "report": command(
            report.main,
            f"--results {inputs}/few --data {inputs} --out {{0}}/report.html --quiet",
            "report.html",
            volatile=("report.html",),
        ),
        "pack": command(folder2lmdb.main, f"-f {inputs}/images --out {{0}} --overwrite --quiet", "train.lmdb"),
        "pack with readers": command(folder2lmdb.main, f"-f {inputs}/images --out {{0}} --quiet -p 2 --verify"),
        "labels": command(
            labels_csv.main, f"{inputs}/images/train.lmdb --out {{0}}/labels.csv --overwrite --quiet", "labels.csv"
        ),
        "subset": command(imagenet50.main, f"-f {inputs}/images -s val --out {{0}} --quiet"),
    }
