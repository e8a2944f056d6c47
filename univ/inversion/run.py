"""A job of inversion.py, done: images in batches, saved part by part, and then one file and what lies beside it."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ import files, runs
from univ.data import Images
from univ.data.images import to_float
from univ.data.loaders import Batches, stream
from univ.errors import InputError
from univ.inversion import null, record
from univ.inversion.jobs import Job, images_of
from univ.inversion.optimise import Inversion, Inverter
from univ.inversion.parts import Parts
from univ.models import HEAD_INPUT
from univ.models.precision import arithmetic

SHEET_COLUMNS = 8


def make(args: argparse.Namespace, job: Job, processes: runs.Distributed) -> None:
    """Do this process's share of a job; the first process waits for the others and writes the file."""
    started, n = time.perf_counter(), len(job.targets)
    if done := n - sum(map(len, job.missing)):
        logger.info("{}: {:,} of {:,} images are there, continuing", job.output.stem, done, n)
    if share := job.missing[processes.rank :: processes.world_size]:
        invert(args, job, share, processes.device)
    if processes.is_main:
        parts = job.parts()
        parts.wait()
        about = assemble(args, job, parts, processes.device)
        words = "{}: {:,} images in {:.0f} s; relative distance min {min:.3f}, median {median:.3f}, max {max:.3f}"
        logger.info(words, job.output, n, time.perf_counter() - started, **about["distance"])
        words = (
            "{}: {converged:.1%} converged: nearer to their target than any of {images:,} natural images is (median "
        )
        logger.info(words + "{median:.3f})", job.output.stem, **about["null"])


def invert(args: argparse.Namespace, job: Job, share: Sequence[range], device: torch.device) -> None:
    """Invert the images at some positions, and save them batch by batch.

    Raises:
        InputError: the device's memory does not hold a batch, or a distance is NaN.
    """
    model = job.source.load(device)
    parts, work = job.parts(), [len(positions) * args.iterations for positions in share]
    with arithmetic(args.precision, device):
        inversion = Inversion(args.iterations, args.step_size, args.tol)
        read = {"node": args.node or HEAD_INPUT, "pool": args.pool}
        inverter = Inverter(model, inversion, cuda_graph=not args.no_cuda_graph, **read)
        bar = tqdm(total=sum(work), desc=job.output.stem, unit="img·it", unit_scale=True, disable=args.quiet)
        with bar:
            for number, (positions, start, targets) in enumerate(_pairs(args, job, share, device), start=1):
                try:
                    inverted = inverter(start, targets, on_step=bar.update)
                except torch.OutOfMemoryError as error:
                    raise InputError(f"{len(start)} images at a time do not fit on {device}: lower -b") from error
                parts.save(positions.start, inverted)
                bar.set_postfix_str(f"distance {inverted.final_distance.median():.3f}", refresh=False)
                bar.update(sum(work[:number]) - bar.n)  # the steps that --tol saved


def _pairs(
    args: argparse.Namespace, job: Job, share: Sequence[range], device: torch.device
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """(positions, first iterates, target images), decoded ahead by the workers."""
    images = images_of(args, job.source)
    for size, group in itertools.groupby(share, key=len):
        group = list(group)
        chosen = torch.cat([index[p.start : p.stop] for p in group for index in (job.seeds, job.targets)])
        decoded = iter(Batches(images, size, device=device, workers=args.workers, indices=chosen))
        for positions, (seeds, _), (targets, _) in zip(group, decoded, decoded):
            yield positions, _first_iterates(args, seeds, positions), targets


def _first_iterates(args: argparse.Namespace, seeds: Tensor, positions: Sequence[int]) -> Tensor:
    """The seed images, or uniform noise that depends on an image's position alone."""
    if args.init == "seed":
        return seeds
    noise = [torch.rand(seeds.shape[1:], generator=stream("inversion", args.random_state, p)) for p in positions]
    return torch.stack(noise).to(seeds.device)


def _null(args: argparse.Namespace, job: Job, images: Images, device: torch.device) -> Tensor:
    """(n,) relative distance of the nearest other natural image to each target."""
    model = job.source.load(device)

    def reps_of(indices: Tensor) -> Tensor:
        batches = Batches(images, args.batch, device=device, workers=args.workers, indices=indices)
        return null.representations(model, batches, args.node or HEAD_INPUT, args.pool)

    others = null.chosen(job.targets, job.seeds)
    return null.nearest(reps_of(job.targets), job.targets, reps_of(others), others)


def assemble(args: argparse.Namespace, job: Job, parts: Parts, device: torch.device) -> dict[str, Any]:
    """Put the parts together and write CSV, contact sheet, settings and images; returns what to log."""
    inverted, images = parts.collect(), images_of(args, job.source)
    final = inverted.final_distance
    distance = {"min": final.min().item(), "median": final.median().item(), "max": final.max().item()}
    try:
        labels = images.labels
    except FileNotFoundError:  # image files without labels, which inversion does without
        labels = torch.full((len(images),), -1)
    nearest = _null(args, job, images, device)
    converged = (final < nearest).double().mean().item()
    compared = {"images": len(null.chosen(job.targets, job.seeds)), "converged": converged}
    compared["median"] = nearest.median().item()
    table = record.table(job.targets, job.seeds, labels, inverted, nearest)
    files.write_text(job.output.with_suffix(".csv"), table)

    chosen = final.argsort()[torch.linspace(0, len(final) - 1, min(SHEET_COLUMNS, len(final))).round().long()]
    seeds, targets = (
        next(iter(Batches(images, len(chosen), device="cpu", indices=index[chosen])))[0]
        for index in (job.seeds, job.targets)
    )
    rows = {
        args.init: _first_iterates(args, seeds, chosen.tolist()),
        "target": targets,
        "inverted": to_float(inverted.images[chosen]),
    }
    sheet = record.contact_sheet(rows, [f"{value:.3f}" for value in final[chosen].tolist()])
    with files.atomic_path(job.output.with_suffix(".png")) as temporary:
        sheet.save(temporary, format="PNG")

    numbers = {"distance": distance, "null": compared}
    about = {"settings": job.settings, **numbers, "arguments": vars(args), **runs.provenance()}
    about["csv_sha256"] = hashlib.sha256(table.encode()).hexdigest()

    def describe(sha256: str) -> None:
        files.write_json(job.output.with_suffix(".json"), {**about, "images_sha256": sha256})

    parts.finish(inverted, describe)  # last: where the images are, the rest is too
    return numbers
