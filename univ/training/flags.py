"""What imagenet_training.py and cifar10_training.py share: their flags, the checks before anything starts, the run."""

import argparse
import csv
import dataclasses
import datetime
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn

from univ import cli, files, runs
from univ.attacks import PARTS, Attack, AutoAttack, Norm, frozen
from univ.data import Images, dataset_name, find_dataset, is_folder, measure_folder, open_images, open_training
from univ.data.loaders import stream
from univ.data.selection import select
from univ.eps import eps_of_path
from univ.errors import InputError
from univ.models import (
    MODELS_HELP,
    Classifier,
    Source,
    checkpoints,
    file_stem,
    find_arch,
    find_source,
    seeded,
    source_name,
    source_text,
    split_seed,
)
from univ.models.classifier import assemble
from univ.models.names import parse_source
from univ.models.precision import PRECISIONS
from univ.models.sources import pixel_statistics
from univ.runs import Distributed
from univ.training import folder
from univ.training.evaluation import evaluate
from univ.training.loop import Trainer
from univ.training.recipe import Data, Recipe, Saving, differences

CONSTRAINTS: dict[str, Norm] = {"inf": "linf", "2": "l2", "unconstrained": "unconstrained", "fourier": "fourier"}
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 10_000
ATTACKS = {"pgd": None, "apgd": PARTS[:2], "autoattack": PARTS}  # --attack, and which parts of AutoAttack it has
PUBLISHED_COLUMNS = ("model", "dataset", "acc", "loss", "trained_eps", "attack_lr", "attack_eps", "timestamp")
RESULT_COLUMNS = (*PUBLISHED_COLUMNS, "attack", "norm")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, **defaults: Any) -> argparse.Namespace:
    """Add the flags of both scripts, parse `argv` and refuse flags that contradict each other.

    Args:
        defaults: of the flags in which the scripts differ, by name: model, save, batch, ckpt, lr, eps; `data`, where
            the images lie, is a text for --help.
    """
    _add_arguments(parser, **defaults)
    args = parser.parse_args(argv)
    if not args.train and args.eval is None and args.model is None:
        parser.error("-t 0 evaluates a checkpoint: give it with -v/--eval, or with -m a model that brings its weights")
    if args.train and args.results_file is not None:
        parser.error("--results-file is for evaluations: use it with -t 0 -v FILE")
    if args.resume and args.eval is not None:
        parser.error("--resume continues the run in --save, -v another checkpoint: give one of them")
    if args.attack != "pgd":
        if args.train:
            parser.error(f"--attack {args.attack} is for evaluations (-t 0 -v FILE): training is on images of PGD")
        if args.constraint not in ("2", "inf"):
            parser.error(f"--attack {args.attack} bounds perturbations in -c 2 or inf, not {args.constraint}")
        if args.eps == 0:
            parser.error(f"--attack {args.attack} needs a radius -o/--eps above 0")
    if args.restarts > 1 and not args.random_start:
        parser.error(f"--restarts {args.restarts} repeats one attack unless it has a --random-start")
    if args.random_start and args.constraint == "fourier":
        parser.error("-c fourier has no random start: leave out --random-start")
    if args.sync_bn and args.device.type != "cuda":
        parser.error(f"--sync-bn needs CUDA, not --device {args.device}: PyTorch has none for the CPU")
    return args


def train_set_of(parser: argparse.ArgumentParser, args: argparse.Namespace, named: str) -> str:
    """The data set: `folder:PATH` where -d or `named` is one, else `named`.

    Its models go to a folder of their own unless --save says where.
    """
    train_set = named
    if is_folder(args.data):
        train_set, args.data = args.data, None
    if is_folder(train_set):
        if args.save == parser.get_default("save"):
            args.save = Path("data/cnns") / dataset_name(train_set)
    elif args.image_size is not None:
        parser.error(f"--image-size is for pictures of your own (folder:PATH): the images of {train_set} have a size")
    return train_set


def _data(text: str) -> Path | str:
    return text if is_folder(text) else cli.folder(text)


def _add_arguments(
    parser: argparse.ArgumentParser, *, model: str, data: str, save: Path, batch: int, ckpt: int, lr: str, eps: str
) -> None:
    group = parser.add_argument_group("model and data")
    add = group.add_argument
    text = f"architecture (default: what the name of -v's file says, without -v {model}), of the study, timm:NAME, "
    text += f"torchvision:NAME or module:FILE.py:FUNCTION; --seed N trains it as ARCH@N; with -t 0 also {MODELS_HELP}"
    add("-m", "--model", type=source_text, metavar="ARCH", help=text)
    cli.add_pixel_statistics(group)
    text = "folder of the data, or folder:PATH for pictures of your own, PATH/{train,val}/<class>/* or "
    text += f"PATH/{{train,val}}.lmdb (default: {data})"
    add("-d", "--data", type=_data, metavar="DIR", help=text)
    text = (
        "of folder:PATH, side of the square images in pixels; measured with mean and std by the first training, kept "
    )
    text += "in PATH/dataset.json (default: what is there, else 224 in imagenet_training.py, 32 in cifar10_training.py)"
    add("--image-size", type=cli.positive_int, metavar="PIXELS", help=text)
    add("-s", "--save", type=cli.output_dir, metavar="DIR", default=save, help="where checkpoints go")
    cli.add_fast_images(group)
    add("-w", "--workers", type=cli.processes, default=4, help="processes that decode images")

    add = parser.add_argument_group("what to do").add_argument
    add("-t", "--train", type=int, choices=(0, 1), default=1, help="1: train, 0: only evaluate -v")
    text = "checkpoint to evaluate, or to go on training from"
    add("-v", "--eval", type=cli.existing_file, metavar="FILE", help=text)
    text = "CSV that an evaluation (-t 0) is appended to"
    add("--results-file", type=cli.output_file, metavar="FILE", help=text)
    text = (
        "continue the run in --save where it stopped, with the same result as if it had not; begin it if there is none"
    )
    add("--resume", action="store_true", help=text)
    text = "begin anew although --save holds this model, or a run that is not finished"
    add("--overwrite", action="store_true", help=text)

    add = parser.add_argument_group("training").add_argument
    text = "1: train on images perturbed by the attack below, 0: on clean ones"
    add("-a", "--adv", type=int, choices=(0, 1), default=0, help=text)
    add("-e", "--epochs", type=cli.positive_int, default=90, help="passes over the training images")
    add("-b", "--batch", type=cli.positive_int, default=batch, help="images per step, over all processes")
    add("--model-lr", type=cli.positive_number, default="0.1", help="initial learning rate of SGD")
    text = "step: divide the learning rate by 10 every --steplr epochs; onecycle: raise it linearly to --model-lr over "
    text += "the first fifth of the steps, then lower it to 0 along a cosine"
    add("--schedule", choices=("step", "onecycle"), default="step", help=text)
    text = "epochs between divisions of the learning rate"
    add("-r", "--steplr", type=cli.positive_int, default=30, metavar="EPOCHS", help=text)
    text = "of SGD (default: 1e-4 in imagenet_training.py, 5e-4 in cifar10_training.py)"
    add("--weight-decay", type=cli.non_negative_number, metavar="FACTOR", help=text)
    text = "keep <epoch>_checkpoint.pt every so many epochs; 0: never"
    add("-k", "--ckpt", type=cli.non_negative_int, default=ckpt, metavar="EPOCHS", help=text)
    text = "longest time without a checkpoint, also within an epoch, in minutes"
    add("--save-minutes", type=cli.positive_number, default="30", metavar="MINUTES", help=text)
    text = "what chooses the best epoch. val: the images that accuracies are reported on, as in the study; held-out: a "
    text += f"tenth of the training images (at most {HELD_OUT_MOST}), which are then not trained on"
    add("--select-on", choices=("val", "held-out"), default="val", help=text)
    add("--no-augment", action="store_true", help="train on the images as they are")
    text = "arithmetic of the network; fp32 is exact (default: bf16 for training on CUDA, otherwise fp32)"
    add("--precision", choices=PRECISIONS, help=text)
    text = "batch norm over the images of all processes instead of each one's own (CUDA only)"
    add("--sync-bn", action="store_true", help=text)
    text = "torch.compile the network: minutes at first, for long runs on CUDA"
    add("--compile", action="store_true", help=text)

    add = parser.add_argument_group("attack, for adversarial training and evaluation").add_argument
    text = "evaluation only. apgd: APGD-CE, then APGD-T towards 9 classes, 100 steps each; autoattack: these, FAB-T "
    text += "and Square with 5000 queries (Croce and Hein 2020, standard version). Both take -c 2 or inf and -o; the "
    text += "other flags of this group are PGD's"
    add("--attack", choices=tuple(ATTACKS), default="pgd", help=text)
    text = "threat model: the norm that bounds a perturbation, or another set of perturbations"
    add("-c", "--constraint", choices=tuple(CONSTRAINTS), default="2", help=text)
    text = "radius, in pixel units of [0, 1] images; 8/255 and the like are understood"
    add("-o", "--eps", type=cli.non_negative_number, default=eps, help=text)
    text = "step size, same unit; for unconstrained and fourier, the factor of the gradient"
    add("-l", "--lr", type=cli.positive_number, default=lr, help=text)
    add("-p", "--steps", type=cli.non_negative_int, default=3, help="steps")
    text = "1: of each image keep the iterate with the highest loss, 0: the last one"
    add("--use-best", type=int, choices=(0, 1), default=1, help=text)
    text = "start from a random point of the threat model instead of the image"
    add("--random-start", action="store_true", help=text)
    text = "evaluation only: runs from different random starts; of each image the worst case counts"
    add("--restarts", type=cli.positive_int, default=1, help=text)

    cli.add_common_arguments(parser)
    parser.set_defaults(default_model=model)


def run(args: argparse.Namespace, train_set: str, recipe: str) -> None:
    """Train or evaluate, as the flags say, a model of `train_set`.

    Args:
        recipe: whose settings train on a folder's pictures, `imagenet` or `cifar10`.
    """
    process = Distributed.from_environment(args.device)
    runs.start(quiet=args.quiet)
    try:
        if is_folder(train_set):  # by every process, as a collective operation would not wait for it
            measure_folder(train_set, recipe, args.image_size)
        if args.train:
            arch = arch_of(args, train_set)  # a wrong one is refused before --save is made
            with folder.only_run(args.save, process):
                _train(args, arch, train_set, process)
        else:
            _evaluate(args, source_of(args, train_set), process)
    finally:
        process.close()


def attack_of(args: argparse.Namespace) -> Attack | AutoAttack:
    """The attack the flags describe; in training, PGD."""
    if (parts := ATTACKS[args.attack]) is not None:
        return AutoAttack(CONSTRAINTS[args.constraint], args.eps, parts)
    return Attack(
        norm=CONSTRAINTS[args.constraint],
        eps=args.eps,
        step_size=args.lr,
        steps=args.steps,
        random_start=args.random_start,
        restarts=args.restarts,
        keep_best=bool(args.use_best),
    )


def source_of(args: argparse.Namespace, train_set: str) -> Source:
    """The model that -m and -v name: a checkpoint whose architecture is known, or one that brings its weights.

    Raises:
        InputError: the architecture is unknown, or -v does not tell.
        FileNotFoundError: the weights are not there.
    """
    text = args.model
    if args.eval is not None:
        if text is not None and parse_source(text)[1] is not None:
            raise InputError(f"-m {text} and -v {args.eval} both name a file: give one")
        text = f"{text}={args.eval}" if text is not None else args.eval
    return find_source(text, dataset=train_set, mean=args.mean, std=args.std)


def arch_of(args: argparse.Namespace, train_set: str) -> str:
    """The architecture to train, with the seed in its name: -m, or what -v's file is of, or the script's default.

    Raises:
        InputError: it is unknown or cannot be trained, -v does not tell, or --seed is another than -m's.
    """
    arch = args.model
    if arch is not None and parse_source(arch)[1] is not None:
        raise InputError(f"-m {arch}: a training begins with an architecture; weights to go on from are -v FILE")
    if arch is None:
        arch = args.default_model if args.eval is None else find_source(args.eval, dataset=train_set).arch
    if arch.startswith(("hub:", "robustbench:")):
        raise InputError(f"-m {arch} can be evaluated (-t 0), not trained: name its architecture as timm:NAME")
    arch, seed = split_seed(arch)
    if seed is not None and args.seed not in (0, seed):
        raise InputError(f"-m {arch}@{seed} is trained with seed {seed}, but --seed says {args.seed}: give one")
    args.seed = args.seed if seed is None else seed
    find_arch(arch, train_set)
    return seeded(arch, args.seed)


# --- training -------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace, arch: str, train_set: str, process: Distributed) -> None:
    """Train a model; its best checkpoint also becomes <save>/<arch>.ckpt (.pt for small images), as rep.py wants it."""
    dataset = find_dataset(train_set)
    recipe = Recipe(
        epochs=args.epochs,
        batch_size=args.batch,
        lr=args.model_lr,
        weight_decay=dataset.weight_decay if args.weight_decay is None else args.weight_decay,
        schedule=args.schedule,
        step_epochs=args.steplr,
        attack=attack_of(args) if args.adv else None,
        seed=args.seed,
        precision=args.precision or ("bf16" if process.device.type == "cuda" else "fp32"),
        sync_bn=args.sync_bn,
    )
    saving = Saving(args.save, checkpoint_every=args.ckpt, minutes=args.save_minutes)
    name = source_name(arch)
    finished = args.save / f"{file_stem(name)}{dataset.suffix}"
    files.destination(finished)
    asked = {"resume": args.resume, "checkpoint": args.eval, "overwrite": args.overwrite}
    start_from = folder.find_start(args.save, finished, arch, recipe, **asked)
    folder.check_start(start_from, process)
    if start_from is not None:
        path, checkpoint = start_from
        if args.eval is None and process.is_main:
            folder.complete_first_save(saving, path, checkpoint)
        if checkpoints.epochs_of(checkpoint) >= recipe.epochs:
            logger.info("{} has all its {} epochs behind it", path, recipe.epochs)
            folder.publish(args.save, finished, process)
            return
    # by every process: reading ImageNet for the first time takes longer than a collective operation waits
    data = open_data(args, train_set)
    if args.eval is None and start_from is not None:
        folder.refuse_other_settings(path, differences(checkpoint, recipe, data.identity))
    model = _new_model(args, arch, train_set)
    if is_folder(train_set):
        _check_size(model, dataset.image_size)
    process.barrier()  # every process has looked at --save before one of them writes there
    if process.is_main:
        if start_from is None or not (args.eval is None or folder.continues_in_place(args.save, args.eval)):
            folder.make_room(args.save, overwrite=args.overwrite)
        arguments = {name: value for name, value in vars(args).items() if name != "default_model"}
        chosen = {"model": name, "precision": recipe.precision, "weight_decay": recipe.weight_decay}
        runs.write_arguments(args.save / "args.json", {**arguments, **chosen, "train_set": train_set})
        logger.info("{}", _announcement(recipe, arch, train_set, data, process))
    Trainer(model, data, recipe, saving, process, compile=args.compile, quiet=args.quiet).fit(start_from)
    folder.publish(args.save, finished, process)


def _new_model(args: argparse.Namespace, arch: str, train_set: str) -> Classifier:
    spec = find_arch(arch, train_set)
    statistics = pixel_statistics([arch], args.mean, args.std)[arch]
    return assemble(dataclasses.replace(spec, **statistics) if args.mean else spec, arch, train_set, seed=args.seed)


def open_data(args: argparse.Namespace, train_set: str) -> Data:
    """The images of a training.

    Raises:
        InputError: labels that do not fit the number of classes, or no training image left.
    """
    train, val = open_training(train_set, args.data, augment=not args.no_augment, fast=args.fast_images)
    for part, images in (("training", train), ("validation", val)):
        _check_labels(images, train_set, part, args.data)
    if args.select_on == "held-out":
        order = torch.randperm(len(train), generator=stream("held-out", args.seed))
        held_out = min(HELD_OUT_MOST, round(HELD_OUT_SHARE * len(order)))
        logger.info("the best epoch is chosen on {:,} training images that are not trained on", held_out)
        val, train = (select(train, rows.sort().values) for rows in (order[:held_out], order[held_out:]))
    identity = {
        "training images": train.fingerprint,
        "validation images": val.fingerprint,
        "augmentation (--no-augment)": "off" if args.no_augment else "on",
        "decoding (--fast-images)": "fast" if args.fast_images else "exact",
    }
    return Data(train, val, workers=args.workers, identity=identity)


def _check_labels(images: Images, train_set: str, part: str, path: Path | None) -> None:
    found, expected = int(images.labels.max()) + 1, find_dataset(train_set).num_classes
    where = f" in -d {path}" if path is not None else ""
    if found > expected:
        raise InputError(f"the {part} images{where} have {found} classes, {train_set} has {expected} (see -n, -d)")
    if found < expected:
        logger.warning("the {} images{} have {} classes, {} has {}", part, where, found, train_set, expected)


def _check_size(model: nn.Module, image_size: int) -> None:
    """Refuse images of a size that a network cannot take, which the study's sizes all are.

    Raises:
        InputError: so it is.
    """
    try:
        with frozen(model), torch.no_grad():
            model(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{model.arch} does not take images of {image_size} pixels: {reason} (--image-size)"
        ) from error


def _announcement(recipe: Recipe, arch: str, train_set: str, data: Data, process: Distributed) -> str:
    how = "standard training"
    if (attack := recipe.attack) is not None:
        how = f"adversarial training ({attack.norm}, eps {attack.eps:g}, {attack.steps} steps of {attack.step_size:g})"
    where = f"{process.world_size} x {process.device.type}" if process.world_size > 1 else process.device
    what = f"{arch} on {len(data.train):,} images of {train_set}"
    return f"{what}: {how}, {recipe.epochs} epochs, {recipe.precision} on {where}"


# --- evaluation -----------------------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace, source: Source, process: Distributed) -> None:
    """Measure clean and robust accuracy of a model on the validation images; print, append them to --results-file."""
    columns = () if args.results_file is None else _columns(args.results_file, args.attack)
    if columns and process.is_main:
        files.check_append(args.results_file, header=",".join(columns))
    train_set, name = source.train_set, source_name(source.arch)
    size = source.image_size if args.eval is None else None  # what was trained here saw the data set's size
    options = {"image_size": size, "purpose": "evaluation", "fast": args.fast_images}
    images = open_images(train_set, "val", data_path=args.data, **options)
    _check_labels(images, train_set, "validation", args.data)
    model = source.load(process.device).to(memory_format=torch.channels_last)
    attack = attack_of(args)
    clean, robust = evaluate(
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
    print(f"{name} on {clean.images:,} images of {train_set}")
    print(f"  clean accuracy {clean.accuracy:.2f} %, loss {clean.loss:.4f}")
    how = f"-c {args.constraint}, eps {attack.eps:g}"
    how += f", {attack.steps} steps of {args.lr:g}" if args.attack == "pgd" else f", {' + '.join(attack.parts)}"
    print(f"  robust accuracy {robust.accuracy:.2f} %, loss {robust.loss:.4f} ({how})")
    if args.results_file is None:
        return
    timestamp, trained_eps = datetime.datetime.now().isoformat(timespec="seconds"), eps_of_path(source)
    step = args.lr if args.attack == "pgd" else ""  # the others choose theirs
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        (name, dataset_name(train_set), score.accuracy, score.loss, trained_eps, lr, eps, timestamp, *about)[
            : len(columns)
        ]
        for score, lr, eps, *about in (
            (clean, 0, 0, "none", "none"),
            (robust, step, attack.eps, args.attack, attack.norm),
        )
    )
    files.append_text(args.results_file, text.getvalue(), header=",".join(columns))
    logger.info("appended to {}", args.results_file)


def _columns(path: Path, attack: str) -> tuple[str, ...]:
    """Those of the rows to append: a file from before --attack goes on as it is, with PGD alone.

    Raises:
        InputError: another attack, which such a file has no column for.
    """
    if not path.is_file():
        return RESULT_COLUMNS
    with path.open(encoding="utf-8", errors="replace") as file:
        if file.readline().rstrip("\n") != ",".join(PUBLISHED_COLUMNS):
            return RESULT_COLUMNS
    if attack != "pgd":
        raise InputError(f"{path} has no column for --attack {attack}, it is older: name another --results-file")
    return PUBLISHED_COLUMNS
