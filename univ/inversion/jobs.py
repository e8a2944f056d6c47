"""What a command line of inversion.py asks for -> the files still to be made; index files are drawn or read."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from univ import files
from univ.data import Images, find_dataset, indices, open_images
from univ.eps import eps_of_path
from univ.errors import InputError
from univ.inversion import record
from univ.inversion.parts import Parts, parts_folder, remove_left
from univ.models import Source, file_stem, find_arch, find_source, source_names
from univ.models.names import parse_source
from univ.models.sources import pixel_statistics
from univ.reps import nodes
from univ.reps.nodes import node_folder
from univ.results import made

PROCEDURE = ("iterations", "step_size", "tol", "init", "precision", "uint8")  # flags that decide the result
_open_images = functools.cache(open_images)


@dataclass(frozen=True)
class Job:
    """One file to make: the same in every process."""

    source: Source
    output: Path
    targets: Tensor  # (n,) indices of the target images
    seeds: Tensor  # (n,) indices of the seed images
    settings: dict[str, Any]
    missing: list[range]  # positions among the n that are still to be inverted

    def parts(self) -> Parts:
        return Parts(self.output, self.settings, len(self.targets))


def images_of(args: argparse.Namespace, source: Source) -> Images:
    places = {"data_path": args.data_path, "labels_path": args.labels_path}
    return _open_images(args.dataset, image_size=source.image_size, fast=args.fast_images, **places)


def _check_source(text: str, args: argparse.Namespace, eps: str) -> None:
    """Refuse an unknown architecture, and a file whose path says another radius than the one it is to be named by."""
    arch, path = parse_source(text)
    if arch is not None:
        find_arch(arch, args.pretrain_dataset)
    if path is not None and (said := eps_of_path(path)) not in (None, eps):
        raise InputError(f"{path} is of {said}, but -e/--eps says {eps}: the inverted images are named by it")


def plan(args: argparse.Namespace, stack: contextlib.ExitStack) -> list[Job]:
    """The files that are not there yet. All checks come before the first hour of work.

    Index files are drawn and written here, and the folders of parts are opened; `stack` closes them.

    Raises:
        InputError: a file that is there was made otherwise, or is not the one that its JSON describes.
    """
    jobs, sources = [], source_names(args.model)
    statistics = pixel_statistics(sources.values(), args.mean, args.std)
    for eps, (name, text) in itertools.product(args.eps, sources.items()):
        _check_source(text, args, eps)
        output = node_folder(args.inverted_imgs_path, args.node, args.pool) / f"{file_stem(name)}_{eps}.pt"
        files.destination(output)
        kept = output.exists() and not args.overwrite
        if kept and not output.with_suffix(".json").exists():
            remove_left(output)
            _check_indices(args, output)
            logger.warning("{} exists without a JSON: taken as done, with settings that are unknown", output)
            continue
        source = replace(_find_source(args, text, eps, statistics[text]), name=name)
        images = images_of(args, source)
        targets, seeds = pairs(args, images)
        settings = {
            **{name: getattr(args, name) for name in PROCEDURE},
            "arch": source.arch,
            "pretrain_dataset": find_dataset(args.pretrain_dataset).name,
            "checkpoint": source.digest,
            "images": images.fingerprint,
            "indices": hashlib.sha256(torch.stack([targets, seeds]).numpy().tobytes()).hexdigest(),
        }
        settings |= {name: getattr(args, name) for name in ("node", "pool") if getattr(args, name)}
        if args.init == "noise":
            settings["random_state"] = args.random_state
        if kept:
            if differing := made.differences(record.read_origin(output).get("settings", {}), settings):
                raise InputError(f"{output} was made otherwise ({made.listed(differing)}): --overwrite replaces it")
            unfinished = ", though a run that was to replace it is unfinished" * parts_folder(output).exists()
            logger.info("{} exists: nothing to do{} (--overwrite replaces it)", output, unfinished)
            continue
        job = Job(source, output, targets, seeds, settings, missing=[])
        parts = job.parts()
        stack.callback(parts.close)
        parts.open(discard=args.overwrite)
        job.missing.extend(parts.missing(args.batch))
        jobs.append(job)
    return jobs


def _find_source(args: argparse.Namespace, text: str, eps: str, statistics: Mapping[str, Any]) -> Source:
    folder = args.model_dir or Path("data/cnns") / find_dataset(args.pretrain_dataset).name / eps
    return find_source(text, folder=folder, dataset=args.pretrain_dataset, **statistics)


def print_nodes(args: argparse.Namespace) -> None:
    """The nodes of every model."""
    sources = source_names(args.model)
    statistics = pixel_statistics(sources.values(), args.mean, args.std)
    for name, text in sources.items():
        nodes.print_nodes(name, _find_source(args, text, args.eps[0], statistics[text]).load())


# --- which images ---------------------------------------------------------------------------------------------------


def _index_paths(args: argparse.Namespace) -> tuple[Path, Path]:
    """The index files of targets and seeds, named or at their usual place."""
    folder = args.inverted_imgs_path
    return (
        args.target_indices_path or folder / "target_indices.csv",
        args.seed_indices_path or folder / "seed_indices.csv",
    )


def _check_indices(args: argparse.Namespace, output: Path) -> None:
    """Refuse index files other than those in the CSV beside published images, where there are both."""
    beside = output.with_suffix(".csv")
    for path, column in zip(_index_paths(args), ("target_index", "seed_index")):
        both = beside.exists() and path.exists()
        if both and not record.read_column(beside, column).equal(indices.read_indices(path)):
            raise InputError(f"{path} holds other indices than {beside}, column {column}: --overwrite inverts anew")


def pairs(args: argparse.Namespace, images: Images) -> tuple[Tensor, Tensor]:
    """Indices of the target images and of the seed images: drawn (and written) or read.

    Raises:
        InputError: no files and nothing to draw, files of different length, or files that hold other indices than
            those to be drawn.
    """
    target_path, seed_path = _index_paths(args)
    exist = target_path.exists(), seed_path.exists()
    named = args.target_indices_path is not None or args.seed_indices_path is not None
    draw = args.num_imgs_to_invert > 0 and (args.upper_bound_idx > 0 or not all(exist))
    every_image = find_dataset(args.dataset).num_compared is None and not named and not all(exist)
    if not (draw or every_image):
        if not (named or any(exist)):
            raise InputError(
                f"which images of {args.dataset}? Name index files (-s, -t), or draw them with -n (and -u)"
            )
        targets, seeds = (indices.read_indices(path, len(images)) for path in (target_path, seed_path))
        if len(targets) != len(seeds):
            raise InputError(
                f"{len(targets)} targets in {target_path} (-t), but {len(seeds)} seeds in {seed_path} (-s): "
                "expected one seed for every target"
            )
        return targets, seeds
    n, bound = (args.num_imgs_to_invert, args.upper_bound_idx or len(images)) if draw else (len(images),) * 2
    targets, seeds = indices.draw_targets_and_seeds(n, bound, images.labels, args.random_state)
    advice = "leave out -n and -u to use it, or give --overwrite"
    if not draw:
        order = targets.argsort()
        targets, seeds = targets[order], seeds[order]
        advice = "to use it, put the other index file beside it, or name both (-t, -s)"
    _write({target_path: targets, seed_path: seeds}, overwrite=draw and args.overwrite, advice=advice)
    return targets, seeds


def _write(drawn: Mapping[Path, Tensor], *, overwrite: bool, advice: str) -> None:
    """Write index files, unless they hold these very indices already; other ones are replaced only when asked to.

    One of the two may be there: a run started at the same moment draws the same and is about to write the other.
    """
    with files.locked(next(iter(drawn)), wait=True):
        for path, values in drawn.items():
            if path.exists():
                if torch.equal(indices.read_indices(path), values):
                    continue
                if not overwrite:
                    raise InputError(f"{path} holds other indices than those drawn: {advice}")
            indices.write_indices(path, values)
            logger.info("{:,} indices drawn, saved in {}", len(values), path)
