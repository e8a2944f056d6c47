"""Agreement of all pairs of probes: the share of images to which two probes give the same class.

    python compare_probes.py
    python compare_probes.py --runs runs/digits --split val --out results/probing/probe_agreement.csv

Finds the best-accuracy checkpoints below --runs, predicts the representations each probe's model gave (val_reps.pt or
reps.pt, as train_probe.py wrote or named them) and compares the probes of each data set with each other. A probe that
was trained twice counts once.
"""

import argparse
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ import cli, files, results, runs
from univ.errors import InputError
from univ.reps import files as repfiles
from univ.reps import probes
from univ.results import made


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--runs", type=cli.existing_dir, default=Path("runs"), help="folder below which the probes are")
    add("--cache-dir", type=cli.existing_dir, help="as given to train_probe.py; holds <run-name>/val_reps.pt")
    add("--split", choices=list(repfiles.FILE_NAMES), default="val", help="part of the data the probes are compared on")
    default = Path("results/probing") / results.PROBES_NAME
    add(
        "--out",
        type=cli.output_file,
        default=default,
        help="CSV of the agreements; a JSON beside it",
    )
    add("--overwrite", action="store_true", help="compare anew what has been compared already")
    cli.add_common_arguments(parser, workers=0)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Run:
    """The probes of one start of train_probe.py: checkpoints by name, and the representations they read."""

    checkpoints: dict[str, Path]
    reps: Path


def find_runs(args: argparse.Namespace) -> list[Run]:
    """All finished starts below --runs.

    Raises:
        FileNotFoundError: there is no probe, or the representations of one are gone.
    """
    starts: dict[Path, dict[str, Path]] = {}
    for path in sorted(args.runs.rglob(probes.BEST_ACCURACY)):
        start = path.parents[1]
        if (start / "args.json").is_file() and not (start / "finished.json").is_file():
            logger.warning("{} has not finished: left out", start)
            continue
        starts.setdefault(start, {})[path.parent.relative_to(args.runs).as_posix()] = path
    if not starts:
        raise FileNotFoundError(f"no finished probes below {args.runs}: train_probe.py makes them (see --runs)")
    return [Run(found, find_reps(args, start, next(iter(found.values())))) for start, found in starts.items()]


def find_reps(args: argparse.Namespace, start: Path, checkpoint: Path) -> Path:
    """The representations that the probes of a start read: in --cache-dir, beside the run, or where they were then.

    Raises:
        FileNotFoundError: names the places.
    """
    name = repfiles.FILE_NAMES[args.split]
    saved = probes.load(checkpoint)[1]
    places = [start.parent / name]
    if args.cache_dir is not None:
        places.insert(0, args.cache_dir / str(saved.get("run", start.parent.name)) / name)
    if isinstance(named := saved.get("reps"), dict) and args.split in named:
        places.append(Path(named[args.split]))
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(map(str, places))
    raise FileNotFoundError(
        f"no {args.split} representations for the probes in {start} (tried {tried}): see --cache-dir"
    )


def same_model(name: str, saved: dict[str, Any], reps: Path) -> None:
    """Refuse representations of another model than a probe was trained on, as far as either is known.

    Raises:
        InputError: names what differs.
    """
    trained_on, there = saved | (saved.get("made_from") or {}), repfiles.read_identity(reps)
    known = [key for key in repfiles.MODEL if trained_on.get(key) and there.get(key)]
    if differing := made.differences({key: trained_on[key] for key in known}, {key: there[key] for key in known}):
        raise InputError(
            f"{reps} is of another model than the probe {name} was trained on ({made.listed(differing)}): "
            "train the probe again, or see --cache-dir"
        )
    if "checkpoint" not in known:
        logger.info("{}: nobody knows whether {} is of the model that the probe was trained on", name, reps)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    found = find_runs(args)
    settings = {
        "split": args.split,
        "probes": {name: files.file_hash(path) for run in found for name, path in run.checkpoints.items()},
        "reps": {
            name: {**repfiles.read_identity(run.reps), "sha256": files.content_hash([run.reps])}
            for run in found
            for name in run.checkpoints
        },
    }
    if not args.overwrite and (status := made.check(args.out, settings)):
        logger.info(status.reason)
        return

    preds: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    seen: set[bytes] = set()
    for run in tqdm(found, desc="predict", unit="run", disable=args.quiet):
        loaded = {name: probes.load(path) for name, path in run.checkpoints.items()}
        for name, (probe, _) in list(loaded.items()):
            digest = hashlib.sha256(probe.weight.numpy().tobytes()).digest()
            if digest in seen:  # trained twice with the same settings: it would agree perfectly with itself
                logger.info("{} equals another probe: left out", name)
                del loaded[name]
            seen.add(digest)
        if not loaded:
            continue
        for name, (_, saved) in loaded.items():
            same_model(name, saved, run.reps)
        reps = repfiles.open_reps(run.reps)
        of_run = probes.predictions([probe for probe, _ in loaded.values()], reps, device=args.device)
        for (name, (probe, saved)), classes in zip(loaded.items(), of_run):
            preds[name] = classes
            keys = ("arch", "train_set", "eps", "node")
            about[name] = {key: saved.get(key) for key in keys} | {"accuracy": probe.accuracy, "seed": probe.seed}
            about[name]["dataset"] = saved.get("train_set")

    inputs = {name: settings["reps"][name].get("fingerprint") for name in preds}
    pairs = [
        pair for pair in itertools.combinations(preds, 2) if about[pair[0]]["dataset"] == about[pair[1]]["dataset"]
    ]
    if not pairs:
        raise InputError(f"only one probe of a data set below {args.runs}: a comparison needs two")
    for a, b in pairs:
        if len(preds[a]) != len(preds[b]) or (inputs[a] and inputs[b] and inputs[a] != inputs[b]):
            raise InputError(
                f"{a} and {b} were not given the same images ({len(preds[a])} of {inputs[a]}, {len(preds[b])} of "
                f"{inputs[b]}): extract both from the same data"
            )
    rows = []
    for a, b in tqdm(pairs, desc="compare", unit="pair", disable=args.quiet):
        rows.append((a, b, probes.agreement(preds[a].to(args.device), preds[b].to(args.device))))
    table = pd.DataFrame(rows, columns=results.PROBE_COLUMNS)
    record = {"probes": about, "arguments": vars(args), **runs.provenance()}
    made.write_csv(args.out, table.to_csv(index=False), settings, record)
    different = table[[about[a]["arch"] != about[b]["arch"] for a, b, _ in rows]]["agreement"]
    mean = f", mean over different architectures {different.mean():.4f}" if len(different) else ""
    logger.info("{} pairs of {} probes{}, wrote {}", len(rows), len(preds), mean, args.out)


if __name__ == "__main__":
    cli.run(main)
