"""What imagenet_training.py and cifar10_training.py share: their flags, the checks before anything starts, the run."""

import argparse
import contextlib
import csv
import dataclasses
import datetime
import io
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from univ import cli, files, runs, training
from univ.attacks import Attack, Norm
from univ.data import DATASETS, Images, open_images, open_training
from univ.data.loaders import stream
from univ.data.selection import select
from univ.eps import eps_of_path
from univ.errors import InputError
from univ.files import schemas
from univ.models import arch_from_filename, build_model, checkpoints, file_stem, find_arch, load_model
from univ.models.precision import PRECISIONS
from univ.runs import Distributed
from univ.training import Data, Recipe, Saving

CONSTRAINTS: dict[str, Norm] = {"inf": "linf", "2": "l2", "unconstrained": "unconstrained", "fourier": "fourier"}
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 10_000
RESULT_COLUMNS = ("model", "dataset", "acc", "loss", "trained_eps", "attack_lr", "attack_eps", "timestamp")
RESULT_HEADER = ",".join(RESULT_COLUMNS)


def add_arguments(
    parser: argparse.ArgumentParser, *, model: str, data: str, batch: int, ckpt: int, lr: str, eps: str, save: str
) -> None:
    """Add the flags of both scripts. The keywords are the defaults in which the two differ, named as their flags."""
    group = parser.add_argument_group("model and data")
    text = f"architecture (default: what the name of -v's file says, without -v {model})"
    group.add_argument("-m", "--model", metavar="ARCH", help=text)
    group.add_argument("-d", "--data", type=cli.folder, metavar="DIR", help=f"folder of the data (default: {data})")
    group.add_argument(
        "-s", "--save", type=cli.output_dir, metavar="DIR", default=Path(save), help="where checkpoints go"
    )
    cli.add_fast_images(group)
    group.add_argument("-w", "--workers", type=cli.processes, default=4, help="processes that decode images")

    group = parser.add_argument_group("what to do")
    group.add_argument("-t", "--train", type=int, choices=(0, 1), default=1, help="1: train, 0: only evaluate -v")
    text = "checkpoint to evaluate, or to go on training from"
    group.add_argument("-v", "--eval", type=cli.existing_file, metavar="FILE", help=text)
    text = "CSV that an evaluation (-t 0) is appended to"
    group.add_argument("--results-file", type=cli.output_file, metavar="FILE", help=text)
    text = (
        "continue the run in --save where it stopped, with the same result as if it had not; begin it if there is none"
    )
    group.add_argument("--resume", action="store_true", help=text)
    text = "begin anew although --save holds this model, or a run that is not finished"
    group.add_argument("--overwrite", action="store_true", help=text)

    group = parser.add_argument_group("training")
    text = "1: train on images perturbed by the attack below, 0: on clean ones"
    group.add_argument("-a", "--adv", type=int, choices=(0, 1), default=0, help=text)
    group.add_argument("-e", "--epochs", type=cli.positive_int, default=90, help="passes over the training images")
    text = "images per step, over all processes"
    group.add_argument("-b", "--batch", type=cli.positive_int, default=batch, help=text)
    group.add_argument("--model-lr", type=cli.positive_number, default="0.1", help="initial learning rate of SGD")
    text = "step: divide the learning rate by 10 every --steplr epochs; onecycle: raise it linearly to --model-lr over "
    text += "the first fifth of the steps, then lower it to 0 along a cosine"
    group.add_argument("--schedule", choices=("step", "onecycle"), default="step", help=text)
    text = "epochs between divisions of the learning rate"
    group.add_argument("-r", "--steplr", type=cli.positive_int, default=30, metavar="EPOCHS", help=text)
    text = "of SGD (default: 1e-4 for the ImageNet family, 5e-4 for CIFAR-10 and digits)"
    group.add_argument("--weight-decay", type=cli.non_negative_number, metavar="FACTOR", help=text)
    text = "keep <epoch>_checkpoint.pt every so many epochs; 0: never"
    group.add_argument("-k", "--ckpt", type=cli.non_negative_int, default=ckpt, metavar="EPOCHS", help=text)
    text = "longest time without a checkpoint, also within an epoch, in minutes"
    group.add_argument("--save-minutes", type=cli.positive_number, default="30", metavar="MINUTES", help=text)
    text = "what chooses the best epoch. val: the images that accuracies are reported on, as in the study; held-out: a "
    text += f"tenth of the training images (at most {HELD_OUT_MOST}), which are then not trained on"
    group.add_argument("--select-on", choices=("val", "held-out"), default="val", help=text)
    group.add_argument("--no-augment", action="store_true", help="train on the images as they are")
    text = "arithmetic of the network; fp32 is exact (default: bf16 for training on CUDA, otherwise fp32)"
    group.add_argument("--precision", choices=PRECISIONS, help=text)
    text = "batch norm over the images of all processes instead of each one's own (CUDA only)"
    group.add_argument("--sync-bn", action="store_true", help=text)
    group.add_argument(
        "--compile", action="store_true", help="torch.compile the network: minutes at first, for long runs on CUDA"
    )

    group = parser.add_argument_group("attack, for adversarial training and evaluation")
    text = "threat model: the norm that bounds a perturbation, or another set of perturbations"
    group.add_argument("-c", "--constraint", choices=tuple(CONSTRAINTS), default="2", help=text)
    text = "radius, in pixel units of [0, 1] images; 8/255 and the like are understood"
    group.add_argument("-o", "--eps", type=cli.non_negative_number, default=eps, help=text)
    text = "step size, same unit; for unconstrained and fourier, the factor of the gradient"
    group.add_argument("-l", "--lr", type=cli.positive_number, default=lr, help=text)
    group.add_argument("-p", "--steps", type=cli.non_negative_int, default=3, help="steps")
    text = "1: of each image keep the iterate with the highest loss, 0: the last one"
    group.add_argument("--use-best", type=int, choices=(0, 1), default=1, help=text)
    text = "start from a random point of the threat model instead of the image"
    group.add_argument("--random-start", action="store_true", help=text)
    text = "evaluation only: runs from different random starts; of each image the worst case counts"
    group.add_argument("--restarts", type=cli.positive_int, default=1, help=text)

    cli.add_common_arguments(parser)
    parser.set_defaults(default_model=model)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if not args.train and args.eval is None:
        parser.error("-t 0 evaluates a checkpoint: give it with -v/--eval")
    if args.train and args.results_file is not None:
        parser.error("--results-file is for evaluations: use it with -t 0 -v FILE")
    if args.resume and args.eval is not None:
        parser.error("--resume continues the run in --save, -v another checkpoint: give one of them")
    if args.restarts > 1 and not args.random_start:
        parser.error(f"--restarts {args.restarts} repeats one attack unless it has a --random-start")
    if args.random_start and args.constraint == "fourier":
        parser.error("-c fourier has no random start: leave out --random-start")
    if args.sync_bn and args.device.type != "cuda":
        parser.error(f"--sync-bn needs CUDA, not --device {args.device}: PyTorch has none for the CPU")


def run(args: argparse.Namespace, train_set: str) -> None:
    """Train or evaluate, as the flags say, a model of `train_set`."""
    process = Distributed.from_environment(args.device)
    runs.start(quiet=args.quiet)
    try:
        if args.train:
            arch_of(args, train_set)  # a wrong one is refused before --save is made
            with _only_run(args.save, process):
                train(args, train_set, process)
        else:
            evaluate(args, train_set, process)
    finally:
        process.close()


@contextlib.contextmanager
def _only_run(folder: Path, process: Distributed) -> Iterator[None]:
    """Hold --save for this run, which may have several processes: the first one locks it for all.

    Raises:
        InputError: in every process, when another run trains there.
    """
    problem = None
    with contextlib.ExitStack() as held:
        if process.is_main:
            try:
                if not folder.exists():
                    held.callback(_remove_if_empty, folder)  # by a run that is refused
                held.enter_context(files.locked(folder / checkpoints.LATEST))
            except InputError as error:
                problem = error
        if problem := process.broadcast(problem):
            raise problem
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def attack_of(args: argparse.Namespace) -> Attack:
    """The attack the flags describe."""
    return Attack(
        norm=CONSTRAINTS[args.constraint],
        eps=args.eps,
        step_size=args.lr,
        steps=args.steps,
        random_start=args.random_start,
        restarts=args.restarts,
        keep_best=bool(args.use_best),
    )


def arch_of(args: argparse.Namespace, train_set: str) -> str:
    """The architecture: -m, or what the name of -v's file or its content says, or the script's default.

    Raises:
        InputError: it is unknown, or -v does not tell.
    """
    arch = args.model
    if arch is None and args.eval is not None:
        try:
            arch = arch_from_filename(args.eval)
        except InputError:
            arch = checkpoints.load_checkpoint(args.eval).get("arch")  # in ours, whatever the file is called
            if arch is None:
                raise
    arch = arch or args.default_model
    find_arch(arch, train_set)
    return arch


# --- training -------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, train_set: str, process: Distributed) -> None:
    """Train a model; its best checkpoint also becomes <save>/<arch>.ckpt (.pt for small images), as rep.py wants it."""
    arch = arch_of(args, train_set)
    precision = args.precision or ("bf16" if process.device.type == "cuda" else "fp32")
    recipe = Recipe(
        epochs=args.epochs,
        batch_size=args.batch,
        lr=args.model_lr,
        weight_decay=DATASETS[train_set].weight_decay if args.weight_decay is None else args.weight_decay,
        schedule=args.schedule,
        step_epochs=args.steplr,
        attack=attack_of(args) if args.adv else None,
        seed=args.seed,
        precision=precision,
        sync_bn=args.sync_bn,
    )
    saving = Saving(args.save, checkpoint_every=args.ckpt, minutes=args.save_minutes)
    finished = args.save / (file_stem(arch) + DATASETS[train_set].suffix)
    files.destination(finished)
    start_from = _checkpoint_to_start_from(args, recipe, arch, finished)
    training.check_start(start_from, process)
    if start_from is not None and args.eval is None and process.is_main:
        _complete_first_save(saving, *start_from)
    if start_from is not None and start_from[1].get("epoch", 0) >= recipe.epochs:
        logger.info("{} has all its {} epochs behind it", start_from[0], recipe.epochs)
        _publish(args.save, finished, process)
        return
    data = _open_data(args, train_set)
    # by every process: reading ImageNet for the first time takes longer than a collective operation waits
    data = dataclasses.replace(data, identity=_identity(data, args))
    if args.eval is None and start_from is not None:
        _refuse_other_settings(start_from, training.differences(start_from[1], recipe, data.identity))
    model = build_model(arch, train_set, seed=args.seed)
    process.barrier()  # every process has looked at --save before one of them writes there
    if process.is_main:
        if start_from is None or not (args.eval is None or _continues_in_place(args)):
            _make_room(args.save, overwrite=args.overwrite)
        arguments = vars(args) | {"model": arch, "train_set": train_set, "precision": precision}
        del arguments["default_model"]
        runs.write_arguments(args.save / "args.json", arguments | {"weight_decay": recipe.weight_decay})
        logger.info("{}", _announcement(recipe, arch, train_set, data, process))
    training.fit(
        model,
        data,
        recipe,
        saving,
        process=process,
        start_from=start_from,
        compile=args.compile,
        quiet=args.quiet,
    )
    _publish(args.save, finished, process)


def _complete_first_save(saving: Saving, path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write what a run was still to write that was killed within its first save: copies of the same checkpoint."""
    if (saving.folder / checkpoints.LATEST).exists():
        return
    epoch = checkpoint.get("epoch", 0)
    for name in [f"{epoch}_checkpoint.pt"] * saving.keeps(epoch) + [checkpoints.LATEST]:
        if not (saving.folder / name).exists():
            files.copy(path, saving.folder / name)


def _publish(folder: Path, finished: Path, process: Distributed) -> None:
    """Copy a complete run's best checkpoint to where the other scripts look for it."""
    if process.is_main:
        files.copy(folder / checkpoints.BEST, finished)
        logger.info("best epoch: {}", finished)


def _open_data(args: argparse.Namespace, train_set: str) -> Data:
    """The images of a run.

    Raises:
        InputError: labels that do not fit the number of classes, or no training image left.
    """
    train_images, val_images = open_training(train_set, args.data, augment=not args.no_augment, fast=args.fast_images)
    for part, images in (("training", train_images), ("validation", val_images)):
        _check_labels(images, train_set, part, args.data)
    if args.select_on == "val":
        return Data(train_images, val_images, workers=args.workers)
    order = torch.randperm(len(train_images), generator=stream("held-out", args.seed))
    held_out = min(HELD_OUT_MOST, round(HELD_OUT_SHARE * len(order)))
    logger.info("the best epoch is chosen on {:,} training images that are not trained on", held_out)
    chosen = {"val": order[:held_out].sort().values, "train": order[held_out:].sort().values}
    return Data(**{part: select(train_images, rows) for part, rows in chosen.items()}, workers=args.workers)


def _check_labels(images: Images, train_set: str, part: str, path: Path | None) -> None:
    found, expected = int(images.labels.max()) + 1, DATASETS[train_set].num_classes
    where = f" in -d {path}" if path is not None else ""
    if found > expected:
        raise InputError(f"the {part} images{where} have {found} classes, {train_set} has {expected} (see -n, -d)")
    if found < expected:
        logger.warning("the {} images{} have {} classes, {} has {}", part, where, found, train_set, expected)


def _checkpoint_to_start_from(
    args: argparse.Namespace, recipe: Recipe, arch: str, finished: Path
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that --resume, -v or a restart by torchrun asks for; None to begin.

    Raises:
        InputError: --save holds what this run would overwrite, or the checkpoint does not fit what is asked for.
    """
    # torchrun starts all processes again when one has failed, with the command line of the beginning
    if args.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        try:
            path, checkpoint = checkpoints.newest_readable(args.save)
        except FileNotFoundError:
            return None
        differing = training.differences(checkpoint, recipe)
        if checkpoint.get("arch") != arch:
            differing.insert(0, f"architecture was {checkpoint.get('arch')}, now {arch}")
        _refuse_other_settings((path, checkpoint), differing)
        return path, checkpoint
    if not (args.overwrite or _continues_in_place(args)):
        _refuse_to_overwrite(args.save, arch, finished)
    if args.eval is None:
        return None
    checkpoint = checkpoints.load_checkpoint(args.eval)
    if (epochs := checkpoint.get("epoch") or 0) >= recipe.epochs:
        raise InputError(f"-v {args.eval} has {epochs} epochs behind it: ask for more than -e {recipe.epochs}")
    return args.eval, checkpoint


def _refuse_other_settings(start_from: tuple[Path, Mapping[str, Any]], differing: list[str]) -> None:
    if differing:
        raise InputError(f"--resume: {start_from[0]} is of a run with other settings: {', '.join(differing)}")


def _identity(data: Data, args: argparse.Namespace) -> dict[str, str]:
    """Which images a run trains and chooses on, and how they are augmented and decoded."""
    return {
        "training images": data.train.fingerprint,
        "validation images": data.val.fingerprint,
        "augmentation (--no-augment)": "off" if args.no_augment else "on",
        "decoding (--fast-images)": "fast" if args.fast_images else "exact",
    }


def _continues_in_place(args: argparse.Namespace) -> bool:
    """Whether -v is one of the checkpoints in --save."""
    return args.eval is not None and args.eval.resolve().parent == args.save.resolve()


def _refuse_to_overwrite(folder: Path, arch: str, finished: Path) -> None:
    if finished.exists():
        raise InputError(f"{finished} exists: train it again with --overwrite, or choose another --save")
    try:
        path, checkpoint = checkpoints.newest_readable(folder)
    except FileNotFoundError:
        return
    if checkpoint.get("arch") == arch or _unfinished(checkpoint):
        epochs = f"{checkpoint.get('epoch', '?')} epochs of {checkpoint.get('arch', 'a model')}"
        raise InputError(f"{path} holds {epochs}: go on with --resume, begin anew with --overwrite, or change --save")


def _make_room(folder: Path, *, overwrite: bool) -> None:
    """Move what an earlier run left in --save to <its architecture>_run there, or remove it (and nothing else).

    Otherwise this run, stopped before its first checkpoint, would be resumed from the other's.

    Raises:
        InputError: its args.json names no architecture, or one that could not be a file's name.
    """
    names = ("args.json", "log.jsonl", "tensorboard", checkpoints.LATEST, checkpoints.BEST)
    left = [path for path in (*map(folder.joinpath, names), *folder.glob("*_checkpoint.pt")) if path.exists()]
    if not left:
        return
    if overwrite or not any("checkpoint" in path.name for path in left):  # killed before its first: nothing to keep
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    earlier = _earlier_arch(folder / "args.json")
    stem = f"{file_stem(earlier)}_run"
    names = itertools.chain([stem], (f"{stem}{number}" for number in itertools.count(2)))
    place = next(place for place in map(folder.joinpath, names) if not os.path.lexists(place))
    place.mkdir()
    for path in left:
        path.rename(place / path.name)
    logger.info("moved checkpoints and logs of the earlier run ({}) to {}", earlier, place)


def _earlier_arch(record: Path) -> str:
    """The architecture of the run that wrote an args.json; `earlier` where there is none."""
    if not record.exists():
        return "earlier"
    arch = schemas.read_json(record, schemas.RunArguments).model
    try:
        file_stem(arch)
    except InputError as error:
        raise InputError(f"{record}: {error}; remove it") from error
    return arch


def _unfinished(checkpoint: Mapping[str, Any]) -> bool:
    resume = checkpoint.get("resume")
    return resume is None or checkpoint["epoch"] < resume["recipe"]["epochs"]


def _announcement(recipe: Recipe, arch: str, train_set: str, data: Data, process: Distributed) -> str:
    how = "standard training"
    if (attack := recipe.attack) is not None:
        how = f"adversarial training ({attack.norm}, eps {attack.eps:g}, {attack.steps} steps of {attack.step_size:g})"
    where = f"{process.world_size} x {process.device.type}" if process.world_size > 1 else process.device
    what = f"{arch} on {len(data.train):,} images of {train_set}"
    return f"{what}: {how}, {recipe.epochs} epochs, {recipe.precision} on {where}"


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace, train_set: str, process: Distributed) -> None:
    """Measure clean and robust accuracy of -v on the validation images; print them, append them to --results-file."""
    if args.results_file is not None and process.is_main:
        files.check_append(args.results_file, header=RESULT_HEADER)
    arch = arch_of(args, train_set)
    images = open_images(train_set, "val", data_path=args.data, purpose="evaluation", fast=args.fast_images)
    _check_labels(images, train_set, "validation", args.data)
    model = load_model(arch, train_set, args.eval, device=process.device).to(memory_format=torch.channels_last)
    attack = attack_of(args)
    clean, robust = training.evaluate(
        model,
        images,
        attack=attack,
        batch_size=args.batch,
        process=process,
        workers=args.workers,
        precision=args.precision or "fp32",
        seed=args.seed,
        quiet=args.quiet,
    )
    if not process.is_main:
        return
    print(f"{arch} on {clean.images:,} images of {train_set}")
    print(f"  clean accuracy {clean.accuracy:.2f} %, loss {clean.loss:.4f}")
    print(
        f"  robust accuracy {robust.accuracy:.2f} %, loss {robust.loss:.4f} "
        f"(-c {args.constraint}, eps {attack.eps:g}, {attack.steps} steps of {attack.step_size:g})"
    )
    if args.results_file is not None:
        about = {
            "model": arch,
            "dataset": train_set,
            "trained_eps": eps_of_path(args.eval),
            "timestamp": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        append_results(
            args.results_file,
            [
                about | {"acc": clean.accuracy, "loss": clean.loss, "attack_lr": 0, "attack_eps": 0},
                about
                | {
                    "acc": robust.accuracy,
                    "loss": robust.loss,
                    "attack_lr": attack.step_size,
                    "attack_eps": attack.eps,
                },
            ],
        )
        logger.info("appended to {}", args.results_file)


def append_results(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV of RESULT_COLUMNS, which is made where it is missing; see `files.append_text`."""
    text = io.StringIO()
    csv.DictWriter(text, RESULT_COLUMNS, lineterminator="\n").writerows(rows)
    files.append_text(path, text.getvalue(), header=RESULT_HEADER)
