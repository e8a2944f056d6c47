"""A run of train_probe.py: representations are opened or extracted, probes trained on them, checkpoints written."""

import argparse
import datetime
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger
from torch import Tensor

from univ import files, models, runs
from univ.data import Images, dataset_name, find_dataset, open_images
from univ.data.indices import read_labels
from univ.errors import InputError
from univ.models import Classifier, Source
from univ.reps import files as repfiles
from univ.reps import probes
from univ.reps.extract import extract
from univ.reps.identity import MODEL, differing_models
from univ.reps.nodes import node_label

EXTRACT_BATCH = 256  # images per forward pass at most: 1024 of them, fine for probes, need tens of GB in a wide ResNet


def _given(args: argparse.Namespace, what: str, split: str) -> Path | None:
    """The value of --lmdb-file, --val-lmdb-file, --reps-file ..."""
    return getattr(args, f"{'val_' * (split == 'val')}{what}_file")


def reps_path(args: argparse.Namespace, split: str) -> Path:
    """The file of a part's representations: the one given, else in the run's folder."""
    folder = (args.cache_dir or args.runs) / args.run_name
    return _given(args, "reps", split) or folder / repfiles.FILE_NAMES[split]


def default_file(dataset: str, split: str) -> Path | None:
    """Where the images of an ImageNet-like data set usually lie; None for those that need no path."""
    known = find_dataset(dataset)
    folder = known.training_path
    if folder in (None, known.default_path):  # one place holds both parts
        return None
    places = [place / f"{split}.lmdb" for place in (folder, Path("data") / dataset)]
    return next((path for path in places if path.is_file()), places[0])


def open_part(args: argparse.Namespace, split: str, image_size: int | None = None) -> Images:
    """The images of a part, prepared as for evaluation, without augmentation, at the size the model wants."""
    path = _given(args, "lmdb", split) or default_file(args.dataset, split)
    how = {"image_size": image_size, "purpose": "evaluation", "fast": args.fast_images}
    return open_images(args.dataset, split, data_path=path, **how)


def find_source(args: argparse.Namespace) -> Source:
    """The model whose representations are read."""
    return models.find_source(args.source, dataset=args.train_set, mean=args.mean, std=args.std)


def read_parts(args: argparse.Namespace) -> dict[str, probes.Labelled]:
    """Representations and labels of both parts: of the files given, else extracted into the run's folder.

    Raises:
        InputError: not as many labels as representations.
    """

    source = functools.cache(functools.partial(find_source, args))  # looked for only if something is extracted

    @functools.cache
    def model() -> Classifier:
        return source().load(args.device)

    parts = {}
    for split in repfiles.FILE_NAMES:
        path, labels_file = reps_path(args, split), _given(args, "labels", split)
        extracted = _given(args, "reps", split) is None
        reps = None if extracted else repfiles.open_reps(path)
        if extracted or labels_file is None:
            images = open_part(args, split, source().image_size if extracted else None)
        if reps is None:
            reps = _extract(args, path, split, source(), model(), images)
        labels = images.labels if labels_file is None else read_labels(labels_file, length=len(reps))
        if len(labels) != len(reps):
            raise InputError(f"{path} holds {len(reps):,} representations, there are {len(labels):,} labels")
        parts[split] = probes.Labelled(reps, labels)
    return parts


def _extract(
    args: argparse.Namespace, path: Path, split: str, source: Source, model: Classifier, images: Images
) -> Tensor:
    identity = {
        "dataset": dataset_name(args.dataset),
        "split": split,
        "fingerprint": images.fingerprint,
        "transform": images.transform_name,
        "arch": source.arch,
        "node": node_label(args.node, args.pool, model.spec.node),
        "checkpoint": source.digest,
        "dtype": args.reps_dtype,
        "precision": args.precision,
        "n": len(images),
    }

    options = {name: getattr(args, name) for name in ("device", "workers", "precision", "quiet", "node", "pool")}
    read = functools.partial(extract, model, images, batch_size=min(args.batch, EXTRACT_BATCH), **options)
    return repfiles.extract(path, identity, images.labels, read)


def _start_folder(run: Path) -> Path:
    """A new folder `<run>/<start time>`; two runs that start in the same second get different ones."""
    while True:
        folder = run / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            time.sleep(0.2)
        else:
            return folder


def train(args: argparse.Namespace, parts: dict[str, probes.Labelled]) -> None:
    """Train the probes and write their checkpoints and logs; two parts known to be of different models are refused."""
    paths = {split: reps_path(args, split) for split in parts}
    identity = repfiles.read_identity(paths["val"])
    if differing := differing_models(repfiles.read_identity(paths["train"]), identity):
        raise InputError(f"{paths['train']} and {paths['val']} differ in their {differing}")
    if "classifier_accuracy" in identity:
        logger.info("{}'s own classifier: accuracy {:.2%}", args.model_arch, identity["classifier_accuracy"])
    dataset = find_dataset(args.dataset)
    about = {
        "arch": args.model_arch,
        "train_set": dataset.name,
        "eps": args.eps,
        "node": identity.get("node"),
        "num_classes": dataset.num_classes,
        "run": args.run_name,
        "made_from": {key: identity[key] for key in MODEL if key in identity},
        "reps": {split: str(path) for split, path in paths.items()},
    }
    folder = _start_folder(args.runs / args.run_name)
    runs.write_arguments(folder / "args.json", vars(args))
    started, best = time.perf_counter(), probes.Best()
    settings = probes.Training(args.epochs, args.batch, args.lr, seed=args.seed)
    seeds = [args.seed + i for i in range(args.num_probes)]
    boards = [runs.scalars(folder / str(i)) for i in range(len(seeds))]
    trained = {"device": args.device, "quiet": args.quiet}
    for epoch in probes.train(parts["train"], parts["val"], dataset.num_classes, seeds, settings, **trained):
        best.update(epoch.probes)
        _log(boards, epoch, args.log_every_n_batches)
        for i, probe in enumerate(epoch.probes):
            if best.by_accuracy[i] is probe:
                probes.save(folder / str(i) / probes.BEST_ACCURACY, probe, about)
            if best.by_loss[i] is probe:
                probes.save(folder / str(i) / probes.BEST_LOSS, probe, about)
        scores = ", ".join(f"{probe.accuracy:.2%}" for probe in epoch.probes)
        logger.info("epoch {}/{}: validation accuracy {}", epoch.number, args.epochs, scores)
    summary: dict[str, Any] = {**about, "start": folder.name}
    summary["probes"] = [
        {"seed": probe.seed, "accuracy": probe.accuracy, "epoch": probe.epoch, "best_loss": other.loss}
        for probe, other in zip(best.by_accuracy, best.by_loss)
    ]
    for place in (folder, folder.parent):
        files.write_json(place / "finished.json", {**summary, **runs.provenance()})
    words = "{} probes of {} on {:,} x {}: best validation accuracy {} in {:.1f} s, wrote {}"
    scores = ", ".join(f"{probe.accuracy:.2%}" for probe in best.by_accuracy)
    seconds = time.perf_counter() - started
    logger.info(words, len(seeds), args.model_arch, *parts["train"].reps.shape, scores, seconds, folder)


def _log(boards: list[Callable[[str, float, int], None]], epoch: probes.Epoch, every: int) -> None:
    """Add an epoch to the TensorBoard logs, one per probe, with the losses of every so-many-th step of the training."""
    first = (epoch.number - 1) * len(epoch.step_losses) + 1
    steps = [step for step in range(first, first + len(epoch.step_losses)) if step % every == 0]
    for i, (add_scalar, probe, losses) in enumerate(zip(boards, epoch.probes, epoch.step_losses.T.tolist())):
        for step in steps:
            add_scalar("loss/train_batch", losses[step - first], step)
        add_scalar("loss/train", epoch.train_losses[i], epoch.number)
        add_scalar("loss/val", probe.loss, epoch.number)
        add_scalar("accuracy/val", probe.accuracy, epoch.number)
        add_scalar("lr", epoch.lr, epoch.number)
