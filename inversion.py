"""Invert images: change seed images until a model represents them like target images of another class.

    python inversion.py -d digits -m resnext14_4x32d -e eps1 -n 200 -u 360 --iterations 100 --step-size 1
    python inversion.py -d imagenet100 -m resnet50 -e eps3 -s seeds.csv -t targets.csv --precision bf16
    torchrun --nproc-per-node 4 inversion.py -d imagenet -m resnet50 vgg16_bn -e eps3 -n 10000 -u 50000 --uint8

Writes <inverted-imgs-path>/<model>_<eps>.pt and, beside it, a .csv (how near every image came to its target), a .png
(some of them, from the best to the worst) and a .json (settings). A killed run continues where it stopped when the same
command is given again.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ import cli, files, inversion, runs
from univ.compare.inputs import read_report
from univ.data import DATASETS, Images, find_dataset, indices, open_images, trainable
from univ.data.images import to_float
from univ.data.loaders import batches, stream
from univ.eps import EPS
from univ.errors import InputError
from univ.inversion.images import read_origin
from univ.models import file_stem, find_arch, find_checkpoint, load_model
from univ.models.precision import PRECISIONS, arithmetic
from univ.results import made

SHEET_COLUMNS = 8


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    group = parser.add_argument_group("models")
    group.add_argument("-m", "--model", nargs="+", required=True, help="architectures to invert images through")
    group.add_argument(
        "-p",
        "--pretrain-dataset",
        choices=trainable(),
        help="what they were trained on (default: --dataset; sat6: imagenet)",
    )
    group.add_argument(
        "-e", "--eps", nargs="+", choices=EPS, default=["eps0"], help="L2 radius of their adversarial training"
    )
    group.add_argument(
        "--model-dir",
        type=cli.existing_dir,
        help="folder of their checkpoints (default: data/cnns/<pretrain-dataset>/<eps>)",
    )

    group = parser.add_argument_group("images")
    group.add_argument("-d", "--dataset", choices=tuple(DATASETS), default="imagenet", help="of seeds and targets")
    group.add_argument("--data-path", type=cli.existing_path, help="its images (default: see data/README.md)")
    group.add_argument("--labels-path", type=cli.existing_file, help="their labels, where the images are files")
    group.add_argument(
        "-s", "--seed-indices-path", type=cli.path, help="index file (default: <inverted-imgs-path>/seed_indices.csv)"
    )
    group.add_argument(
        "-t",
        "--target-indices-path",
        type=cli.path,
        help="index file (default: <inverted-imgs-path>/target_indices.csv)",
    )
    group.add_argument(
        "-n", "--num-imgs-to-invert", type=cli.non_negative_int, default=0,
        help="draw this many targets, and seeds of other classes, and write both index files; only with -u, or where "
        "there are no index files (drawn from all images then); otherwise they are read",
    )  # fmt: skip
    group.add_argument(
        "-u", "--upper-bound-idx", type=cli.non_negative_int, default=0, help="with -n: draw indices below this one"
    )
    group.add_argument(
        "--random-state", type=cli.seed, default=573098435098230, help="seed of the draw (and of the noise)"
    )
    cli.add_fast_images(group)

    group = parser.add_argument_group("inversion")
    group.add_argument("--iterations", type=cli.positive_int, default=1000, help="steps per image")
    group.add_argument(
        "--step-size", type=cli.positive_number, default=1 / 8, help="L2 length of a step, pixels being in [0, 1]"
    )
    group.add_argument(
        "--tol", type=cli.positive_number,
        help="stop an image when its relative distance improves less than this in 100 iterations (default: never)",
    )  # fmt: skip
    group.add_argument("--init", choices=("seed", "noise"), default="seed", help="what the iteration starts from")
    group.add_argument("-b", "--batch", type=cli.positive_int, default=64, help="images at a time, per process")
    group.add_argument(
        "--no-cuda-graph",
        action="store_true",
        help="launch every kernel by itself: for networks that cannot be captured",
    )

    group = parser.add_argument_group("output")
    group.add_argument(
        "-i", "--inverted-imgs-path", type=cli.output_dir, help="folder to write to (default: data/<dataset>/inverted)"
    )
    group.add_argument("--uint8", action="store_true", help="store round(255 x), a quarter of the size of float32")
    group.add_argument("--overwrite", action="store_true", help="replace an existing file; discard unfinished others")
    cli.add_common_arguments(parser, precisions=PRECISIONS)

    args = parser.parse_args(argv)
    if args.model_dir is not None and len(args.eps) > 1:
        parser.error(f"--model-dir is the folder of one radius, but --eps names {len(args.eps)}: {', '.join(args.eps)}")
    args.model, args.eps = list(dict.fromkeys(args.model)), list(dict.fromkeys(args.eps))
    if args.pretrain_dataset is None:
        args.pretrain_dataset = args.dataset if args.dataset in trainable() else "imagenet"
    if args.inverted_imgs_path is None:
        args.inverted_imgs_path = find_dataset(args.dataset).inverted_path
    return args


@dataclass(frozen=True)
class Job:
    """One file to make: the same in every process."""

    arch: str
    eps: str
    checkpoint: Path
    output: Path
    input_size: int
    targets: Tensor  # (n,) indices of the target images
    seeds: Tensor  # (n,) indices of the seed images
    settings: dict[str, Any]
    missing: list[range]  # positions among the n that are still to be inverted

    @property
    def name(self) -> str:
        return self.output.stem

    def parts(self) -> inversion.Parts:
        return inversion.Parts(self.output, self.settings, len(self.targets), as_uint8=self.settings["uint8"])


# --- what is to be done ---------------------------------------------------------------------------------------------


@functools.cache
def opened(dataset: str, size: int, data_path: Path | None, labels_path: Path | None, fast: bool) -> Images:
    return open_images(dataset, image_size=size, data_path=data_path, labels_path=labels_path, fast=fast)


def images_of(args: argparse.Namespace, image_size: int) -> Images:
    """The images of --dataset at the size a model takes."""
    return opened(args.dataset, image_size, args.data_path, args.labels_path, args.fast_images)


def plan(args: argparse.Namespace, stack: contextlib.ExitStack) -> list[Job]:
    """The files that are not there yet. All checks come before the first hour of work.

    Index files are drawn and written here, and the folders of parts are opened; `stack` closes them.
    """
    procedure = {
        "iterations": args.iterations,
        "step_size": args.step_size,
        "tol": args.tol,
        "init": args.init,
        "precision": args.precision,
        "uint8": args.uint8,
    }
    jobs = []
    for eps, arch in itertools.product(args.eps, args.model):
        spec = find_arch(arch, args.pretrain_dataset)
        output = args.inverted_imgs_path / f"{file_stem(arch)}_{eps}.pt"
        files.destination(output)
        if output.exists() and not args.overwrite and not output.with_suffix(".json").exists():
            inversion.remove_left(output)
            same_targets(args, output)
            logger.warning("{} exists without a JSON: taken as done, with settings that are unknown", output)
            continue
        folder = args.model_dir or Path("data/cnns") / args.pretrain_dataset / eps
        checkpoint = find_checkpoint(folder, arch, args.pretrain_dataset)
        size = spec.input_size or DATASETS[args.pretrain_dataset].image_size
        images = images_of(args, size)
        targets, seeds = pairs(args, images)
        settings = {
            **procedure,
            "arch": arch,
            "pretrain_dataset": args.pretrain_dataset,
            "checkpoint": files.content_hash([checkpoint]),
            "images": images.fingerprint,
            "indices": hashlib.sha256(torch.stack([targets, seeds]).numpy().tobytes()).hexdigest(),
        }
        if args.init == "noise":
            settings["random_state"] = args.random_state
        if output.exists() and not args.overwrite:
            made_as_asked(output, settings)
            logger.info("{} exists: nothing to do{} (--overwrite replaces it)", output, remark(output))
            continue
        job = Job(arch, eps, checkpoint, output, size, targets, seeds, settings, missing=[])
        parts = job.parts()
        stack.callback(parts.close)
        parts.open(discard=args.overwrite)
        job.missing.extend(parts.missing(args.batch))
        jobs.append(job)
    return jobs


def made_as_asked(output: Path, settings: dict[str, Any]) -> None:
    """Refuse an existing file that is not what is asked for.

    Raises:
        InputError: it was made with other settings, or is not the file that its JSON describes.
    """
    record = read_origin(output)
    if differing := made.differences(record.get("settings", {}), settings):
        raise InputError(f"{output} was made otherwise ({made.listed(differing)}): --overwrite replaces it")


def same_targets(args: argparse.Namespace, output: Path) -> None:
    """Refuse index files other than those in the report beside published images, where there are both.

    Raises:
        InputError: names the files.
    """
    report, (target_path, seed_path) = output.with_suffix(".csv"), index_paths(args)
    for path, column in ((target_path, "target_index"), (seed_path, "seed_index")):
        if report.exists() and path.exists() and not read_report(report, column).equal(indices.read_indices(path)):
            raise InputError(f"{path} holds other indices than {report}, column {column}: --overwrite inverts anew")


def remark(output: Path) -> str:
    """What to know about an existing file: that its replacement is unfinished."""
    unfinished = inversion.parts_folder(output).exists()
    return ", though a run that was to replace it is unfinished" if unfinished else ""


def index_paths(args: argparse.Namespace) -> tuple[Path, Path]:
    """The index files of targets and seeds, named or at their usual place."""
    folder = args.inverted_imgs_path
    return (
        args.target_indices_path or folder / "target_indices.csv",
        args.seed_indices_path or folder / "seed_indices.csv",
    )


def pairs(args: argparse.Namespace, images: Images) -> tuple[Tensor, Tensor]:
    """Indices of the target images and of the seed images: drawn (and written) or read.

    Raises:
        InputError: no files and nothing to draw, files of different length, or files that hold other indices than
            those to be drawn.
    """
    target_path, seed_path = index_paths(args)
    there = [path.exists() for path in (target_path, seed_path)]
    named = args.target_indices_path is not None or args.seed_indices_path is not None
    if args.num_imgs_to_invert > 0 and (args.upper_bound_idx > 0 or not all(there)):
        bound = args.upper_bound_idx or len(images)
        targets, seeds = indices.draw_targets_and_seeds(
            args.num_imgs_to_invert, bound, images.labels, args.random_state
        )
        advice = "leave out -n and -u to use it, or give --overwrite"
        write_pairs({target_path: targets, seed_path: seeds}, overwrite=args.overwrite, advice=advice)
        return targets, seeds
    every_image = DATASETS[args.dataset].num_compared is None and not named
    if named or all(there) or (any(there) and not every_image):
        targets = indices.read_indices(target_path, len(images))
        seeds = indices.read_indices(seed_path, len(images))
        if len(targets) != len(seeds):
            raise InputError(
                f"{len(targets)} targets in {target_path} (-t), but {len(seeds)} seeds in {seed_path} (-s): "
                "expected one seed for every target"
            )
        return targets, seeds
    if not every_image:
        raise InputError(f"which images of {args.dataset}? Name index files (-s, -t), or draw them with -n (and -u)")
    targets, seeds = indices.draw_targets_and_seeds(len(images), len(images), images.labels, args.random_state)
    order = targets.argsort()
    targets, seeds = targets[order], seeds[order]
    advice = "to use it, put the other index file beside it, or name both (-t, -s)"
    write_pairs({target_path: targets, seed_path: seeds}, overwrite=False, advice=advice)
    return targets, seeds


def write_pairs(drawn: dict[Path, Tensor], *, overwrite: bool, advice: str) -> None:
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


# --- doing it -------------------------------------------------------------------------------------------------------


def labels_of(images: Images) -> Tensor:
    """(N,) labels for the report; -1 for image files whose labels are not there, which inversion does without."""
    try:
        return images.labels
    except FileNotFoundError:
        return torch.full((len(images),), -1)


def start_images(args: argparse.Namespace, seeds: Tensor, positions: Sequence[int]) -> Tensor:
    """The first iterates: the seed images, or uniform noise that depends on an image's position alone."""
    if args.init == "seed":
        return seeds
    noise = [torch.rand(seeds.shape[1:], generator=stream("inversion", args.random_state, p)) for p in positions]
    return torch.stack(noise).to(seeds.device)


def batches_of_pairs(
    args: argparse.Namespace, job: Job, todo: list[range], device: torch.device
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """(positions, first iterates, target images), decoded ahead by the workers."""
    images = images_of(args, job.input_size)
    for size, group in itertools.groupby(todo, key=len):
        positions = list(group)
        halves = [index[p.start : p.stop] for p in positions for index in (job.seeds, job.targets)]
        both = iter(batches(images, size, device=device, workers=args.workers, indices=torch.cat(halves)))
        for where, (seeds, _), (targets, _) in zip(positions, both, both):
            yield where, start_images(args, seeds, where), targets


def invert(args: argparse.Namespace, job: Job, todo: list[range], device: torch.device) -> None:
    """Invert the images at the positions in `todo`, and save them batch by batch.

    Raises:
        InputError: the device's memory does not hold a batch, or a distance is NaN.
    """
    model = load_model(job.arch, args.pretrain_dataset, job.checkpoint, device=device)
    settings = inversion.Inversion(args.iterations, args.step_size, args.tol)
    parts = job.parts()
    work = sum(map(len, todo)) * args.iterations
    with arithmetic(args.precision, device):
        inverter = inversion.Inverter(model, settings, cuda_graph=not args.no_cuda_graph)
        with tqdm(total=work, desc=job.name, unit="img·it", unit_scale=True, disable=args.quiet) as bar:
            for number, (where, start, targets) in enumerate(batches_of_pairs(args, job, todo, device), start=1):
                try:
                    inverted = inverter(start, targets, on_step=bar.update)
                except torch.OutOfMemoryError as error:
                    raise InputError(f"{len(start)} images at a time do not fit on {device}: lower -b") from error
                parts.save(where.start, inverted)
                bar.set_postfix_str(f"distance {inverted.final_distance.median():.3f}", refresh=False)
                bar.update(sum(map(len, todo[:number])) * args.iterations - bar.n)  # the steps that --tol saved


def assemble(args: argparse.Namespace, job: Job, parts: inversion.Parts) -> dict[str, float]:
    """Put the parts together and write report, contact sheet, settings and images; returns what to log."""
    inverted = parts.collect()
    images = images_of(args, job.input_size)
    final = inverted.final_distance
    distance = {"min": final.min().item(), "median": final.median().item(), "max": final.max().item()}
    report = inversion.report(job.targets, job.seeds, labels_of(images), inverted)
    files.write_text(job.output.with_suffix(".csv"), report)

    chosen = final.argsort()[torch.linspace(0, len(final) - 1, min(SHEET_COLUMNS, len(final))).round().long()]
    pixels = [
        next(iter(batches(images, len(chosen), device="cpu", indices=i[chosen])))[0] for i in (job.seeds, job.targets)
    ]
    rows = [
        (args.init, start_images(args, pixels[0], chosen.tolist())),
        ("target", pixels[1]),
        ("inverted", to_float(inverted.images[chosen])),
    ]
    sheet = inversion.contact_sheet(rows, [f"{value:.3f}" for value in final[chosen].tolist()])
    with files.atomic_path(job.output.with_suffix(".png")) as temporary:
        sheet.save(temporary, format="PNG")

    record = {"settings": job.settings, "distance": distance, "arguments": vars(args), **runs.provenance()}
    record["csv_sha256"] = hashlib.sha256(report.encode()).hexdigest()

    def describe(sha256: str) -> None:
        files.write_json(job.output.with_suffix(".json"), {**record, "images_sha256": sha256})

    parts.finish(inverted, describe)  # last: where the images are, the rest is too
    return distance


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    processes = runs.Distributed.from_environment(args.device)
    with contextlib.ExitStack() as stack:
        stack.callback(processes.close)
        # The only time that processes wait for each other; from here on they meet in the folders of parts.
        jobs = processes.broadcast(plan(args, stack) if processes.is_main else None)
        for job in jobs:
            started = time.perf_counter()
            todo = job.missing[processes.rank :: processes.world_size]
            there = len(job.targets) - sum(map(len, job.missing))
            if there:
                logger.info("{}: {:,} of {:,} images are there, continuing", job.name, there, len(job.targets))
            if todo:
                invert(args, job, todo, processes.device)
            if not processes.is_main:
                continue
            parts = job.parts()
            parts.wait()
            distance = assemble(args, job, parts)
            logger.info(
                "{}: {:,} images in {:.0f} s; relative distance min {min:.3f}, median {median:.3f}, max {max:.3f}",
                job.output,
                len(job.targets),
                time.perf_counter() - started,
                **distance,
            )


if __name__ == "__main__":
    cli.run(main)
