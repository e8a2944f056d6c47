"""Probes below a folder of runs -> the class each gives to every image -> the share on which two probes agree."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ.errors import InputError
from univ.reps import files as repfiles
from univ.reps import probes
from univ.reps.identity import differing_models
from univ.reps.nodes import NODES_FOLDER
from univ.results import PROBE_COLUMNS

ABOUT = ("arch", "train_set", "eps", "node")  # what a probe's checkpoint says of it


@dataclass(frozen=True)
class Start:
    """The probes of one start of train_probe.py: checkpoints by name, and the representations they read."""

    checkpoints: dict[str, Path]
    reps: Path


def find_starts(runs: Path, split: str, cache_dir: Path | None = None) -> list[Start]:
    """All finished starts below a folder of runs.

    Raises:
        FileNotFoundError: there is no probe, or the representations of one are gone.
    """
    starts: dict[Path, dict[str, Path]] = {}
    for path in sorted(runs.rglob(probes.BEST_ACCURACY)):
        folder = path.parents[1]
        if NODES_FOLDER in folder.relative_to(runs).parts:
            continue  # probes of another node are compared by themselves
        if (folder / "args.json").is_file() and not (folder / "finished.json").is_file():
            logger.warning("{} has not finished: left out", folder)
            continue
        starts.setdefault(folder, {})[path.parent.relative_to(runs).as_posix()] = path
    if not starts:
        raise FileNotFoundError(f"no finished probes below {runs}: train_probe.py makes them (see --runs)")
    return [Start(paths, _find_reps(folder, paths, split, cache_dir)) for folder, paths in starts.items()]


def _find_reps(folder: Path, checkpoints: dict[str, Path], split: str, cache_dir: Path | None) -> Path:
    """The representations that the probes of a start read: in the cache, beside the run, or where they were then."""
    name = repfiles.FILE_NAMES[split]
    _, about = probes.load(next(iter(checkpoints.values())))
    places = [folder.parent / name]
    if cache_dir is not None:
        places.insert(0, cache_dir / str(about.get("run", folder.parent.name)) / name)
    if isinstance(named := about.get("reps"), dict) and split in named:
        places.append(Path(named[split]))
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(map(str, places))
    raise FileNotFoundError(f"no {split} representations for the probes in {folder} (tried {tried}): see --cache-dir")


def compare(
    starts: list[Start], images: dict[str, str | None], *, device: torch.device, quiet: bool = False
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """The agreement of every two probes of a data set, columns PROBE_COLUMNS, and what is known of each probe.

    Args:
        images: fingerprint of the images that each probe's model was given, where known.

    Raises:
        InputError: the representations are not those of the model that a probe was trained on, no two probes of a
            data set, or two that were not given the same images.
    """
    preds, known = _predict(starts, device, quiet)
    pairs = [pair for pair in itertools.combinations(preds, 2) if len({known[name]["dataset"] for name in pair}) == 1]
    if not pairs:
        raise InputError("only one probe of a data set: a comparison needs two (see --runs)")
    for a, b in pairs:
        if len(preds[a]) != len(preds[b]) or (images[a] and images[b] and images[a] != images[b]):
            raise InputError(
                f"{a} and {b} were not given the same images ({len(preds[a])} of {images[a]}, {len(preds[b])} of "
                f"{images[b]}): extract both from the same data"
            )
    preds = {name: classes.to(device) for name, classes in preds.items()}
    bar = tqdm(pairs, desc="compare", unit="pair", disable=quiet)
    rows = [(a, b, (preds[a] == preds[b]).double().mean().item()) for a, b in bar]
    return pd.DataFrame(rows, columns=PROBE_COLUMNS), known


def _predict(
    starts: list[Start], device: torch.device, quiet: bool
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The classes each probe gives, (N,), and what is known of it, by its name; equal probes count once."""
    preds, known, seen = {}, {}, set()
    for start in tqdm(starts, desc="predict", unit="run", disable=quiet):
        loaded, identity = {}, repfiles.read_identity(start.reps)
        for name, path in start.checkpoints.items():
            probe, about = probes.load(path)
            digest = hashlib.sha256(probe.weight.numpy().tobytes()).digest()
            if digest in seen:  # trained twice with the same settings: it would agree perfectly with itself
                logger.info("{} equals another probe: left out", name)
                continue
            seen.add(digest)
            loaded[name] = probe
            trained_on = about | (about.get("made_from") or {})
            if differing := differing_models(trained_on, identity):
                raise InputError(
                    f"{start.reps} is of another model than the probe {name} was trained on, they differ in "
                    f"{differing}: train the probe again, or see --cache-dir"
                )
            if not (trained_on.get("checkpoint") and identity.get("checkpoint")):
                words = "{}: nobody knows whether {} is of the model that the probe was trained on"
                logger.info(words, name, start.reps)
            known[name] = {key: about.get(key) for key in ABOUT} | {"accuracy": probe.accuracy, "seed": probe.seed}
            known[name]["dataset"] = about.get("train_set")
        if loaded:
            reps = repfiles.open_reps(start.reps)
            preds |= zip(loaded, probes.predictions(list(loaded.values()), reps, device=device))
    return preds, known
