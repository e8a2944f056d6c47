"""Train linear probes on the frozen representations of one model.

    python train_probe.py -m data/cnns/imagenet/eps3/resnet50.ckpt -d imagenet1k --num-probes 3 --epochs 30
    python train_probe.py -m data/cnns/imagenet/eps3/resnet50.ckpt -d imagenet1k --epochs 0 --num-probes 0
    python train_probe.py -a resnet50 -d imagenet1k --reps-file runs/r50/reps.pt --val-reps-file runs/r50/val_reps.pt
    python train_probe.py -m data/cnns/digits/eps1/vgg11.pt -d digits -b 64 --epochs 30

The second only extracts the representations (reps.pt, val_reps.pt in the run's folder; a killed extraction continues),
the third trains on them. Checkpoints (best accuracy, best loss) and TensorBoard logs go to
<runs>/<run-name>/<start time>/<i>/.
"""

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger
from torch import Tensor

from univ import cli, files, models, runs
from univ.data import DATASETS, Images, open_images, trainable
from univ.data.indices import read_labels
from univ.eps import eps_of_path
from univ.errors import InputError
from univ.models import Classifier
from univ.models.precision import PRECISIONS
from univ.reps import files as repfiles
from univ.reps import probes

EXTRACT_BATCH = 256  # images per forward pass at most: 1024 of them, fine for probes, need tens of GB in a wide ResNet


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    dataset_of = {"imagenet1k" if name == "imagenet" else name: name for name in trainable()}
    parser = cli.Parser(description=__doc__)
    group = parser.add_argument_group("model and data")
    add = group.add_argument
    add("-m", "--model-ckpt-path", type=cli.existing_file, help="checkpoint whose representations are frozen")
    add("-a", "--model-arch", help="its architecture; default: from the checkpoint's file name")
    add("-d", "--dataset-name", choices=sorted(dataset_of), required=True, help="what the probes learn to classify")
    add("--pretrain-dataset", choices=sorted(dataset_of), help="what the model was trained on; default: the same")
    text = "images: an LMDB file, for CIFAR-10 its folder; default: the data set's usual place"
    add("--lmdb-file", type=cli.existing_path, help=f"training {text}")
    add("--labels-file", type=cli.existing_file, help="labels of the training images, one per line, instead of theirs")
    add("--reps-file", type=cli.existing_file, help="representations of the training images: nothing is extracted")
    add("--val-lmdb-file", type=cli.existing_path, help=f"validation {text}")
    add("--val-labels-file", type=cli.existing_file, help="labels of the validation images, instead of theirs")
    add("--val-reps-file", type=cli.existing_file, help="representations of the validation images")
    add("--reps-dtype", choices=sorted(repfiles.DTYPES), default="float32", help="of extracted representations")
    cli.add_fast_images(group)
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("-b", "--batch", type=cli.positive_int, default=1024, help="representations per step of a probe")
    add("-w", "--workers", type=cli.processes, default=2, help="processes that decode images")
    add("--lr", type=cli.positive_number, default=5e-3, help="Adam's learning rate, falls to 1e-6 on a cosine")
    add("--epochs", type=cli.non_negative_int, default=10, help="0: only extract")
    add("--num-probes", type=cli.non_negative_int, default=1, help="trained together, seeds counting up from --seed")
    add("--log-every-n-batches", type=cli.positive_int, default=30, help="steps between TensorBoard's training losses")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--run-name", help="default: <dataset>/<architecture>_<eps>")
    add("--runs", type=cli.output_dir, default=Path("runs"), help="folder of the runs")
    add(
        "--cache-dir",
        type=cli.output_dir,
        help="put representations in <cache-dir>/<run-name>/ instead of the run's folder",
    )
    cli.add_common_arguments(parser, precisions=PRECISIONS)
    args = parser.parse_args(argv)
    if args.model_ckpt_path is None:
        if args.reps_file is None or args.val_reps_file is None:
            parser.error("without --reps-file and --val-reps-file there is a model to read: -m CHECKPOINT")
        if args.model_arch is None:
            parser.error("name the architecture the representations come from: -a ARCH")
    if args.model_arch is None:
        args.model_arch = models.arch_from_filename(args.model_ckpt_path)
    if args.run_name is not None:
        try:
            files.relative_path(args.run_name, "--run-name")
        except InputError as error:
            parser.error(str(error))
    args.dataset = dataset_of[args.dataset_name]
    args.train_set = dataset_of[args.pretrain_dataset or args.dataset_name]
    named = map(eps_of_path, filter(None, (args.model_ckpt_path, args.reps_file, args.run_name)))
    args.eps = next(filter(None, named), None)
    if args.run_name is None:
        args.run_name = f"{args.dataset}/{'_'.join(filter(None, [models.file_stem(args.model_arch), args.eps]))}"
    return args


def default_file(dataset: str, split: str) -> Path | None:
    """Where the images of an ImageNet-like data set usually lie; None for those that need no path."""
    folder = DATASETS[dataset].training_path
    if folder in (None, DATASETS[dataset].default_path):  # one place holds both parts
        return None
    places = [place / f"{split}.lmdb" for place in (folder, Path("data") / dataset)]
    return next((path for path in places if path.is_file()), places[0])


def open_part(args: argparse.Namespace, split: str, image_size: int | None = None) -> Images:
    """The images of a part, prepared as for evaluation, without augmentation, at the size the model wants."""
    given = args.lmdb_file if split == "train" else args.val_lmdb_file
    path = given or default_file(args.dataset, split)
    return open_images(
        args.dataset, split, image_size=image_size, data_path=path, purpose="evaluation", fast=args.fast_images
    )


class Extractor:
    """Representations of the parts of the data: read from the files given, else extracted into the run's folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = (args.cache_dir or args.runs) / args.run_name
        self._model: Classifier | None = None
        self._checkpoint = ""

    def path(self, split: str) -> Path:
        """The file given, else the one in the run's folder."""
        given = self.args.reps_file if split == "train" else self.args.val_reps_file
        return given or self.folder / repfiles.FILE_NAMES[split]

    def model(self) -> Classifier:
        """The frozen model, loaded once and only if something is extracted."""
        if self._model is None:
            args = self.args
            self._model = models.load_model(args.model_arch, args.train_set, args.model_ckpt_path, device=args.device)
            self._checkpoint = files.file_hash(args.model_ckpt_path)
        return self._model

    def __call__(self, split: str) -> tuple[Tensor, Tensor]:
        """Representations (N, D) and labels (N,) of a part."""
        args = self.args
        given = args.reps_file if split == "train" else args.val_reps_file
        labels_file = args.labels_file if split == "train" else args.val_labels_file
        if given is not None:
            reps = repfiles.open_reps(given)
            labels = read_labels(labels_file, length=len(reps)) if labels_file else open_part(args, split).labels
        else:
            model = self.model()
            images = open_part(args, split, model.input_size)
            identity = {
                "dataset": args.dataset,
                "split": split,
                "fingerprint": images.fingerprint,
                "transform": images.transform_name,
                "arch": args.model_arch,
                "node": model.spec.node,
                "checkpoint": self._checkpoint,
            }
            reps = repfiles.extract(
                self.path(split),
                model,
                images,
                identity,
                dtype=args.reps_dtype,
                batch_size=min(args.batch, EXTRACT_BATCH),
                device=args.device,
                workers=args.workers,
                precision=args.precision,
                quiet=args.quiet,
            )
            labels = read_labels(labels_file, length=len(images)) if labels_file else images.labels
        if len(labels) != len(reps):
            raise InputError(
                f"{self.path(split)} holds {len(reps):,} representations, there are {len(labels):,} labels"
            )
        return reps, labels


def same_model(train_path: Path, val_path: Path) -> None:
    """Refuse training and validation representations that are known to come from different models.

    Raises:
        InputError: names what differs.
    """
    train, val = repfiles.read_identity(train_path), repfiles.read_identity(val_path)
    for key in repfiles.MODEL:
        if train.get(key) and val.get(key) and train[key] != val[key]:
            raise InputError(f"{train_path} and {val_path} differ in their {key}: {train[key]} and {val[key]}")


def start_folder(run: Path) -> Path:
    """A new folder `<run>/<start time>`; two runs that start in the same second get different ones."""
    while True:
        folder = run / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            time.sleep(0.2)
        else:
            return folder


def train(args: argparse.Namespace, extractor: Extractor) -> None:
    """Train the probes and write their checkpoints and logs."""
    train_part, val_part = (probes.Labelled(*extractor(split)) for split in ("train", "val"))
    train_path, val_path = extractor.path("train"), extractor.path("val")
    same_model(train_path, val_path)
    num_classes = DATASETS[args.dataset].num_classes
    identity = repfiles.read_identity(val_path)
    if "classifier_accuracy" in identity:
        logger.info("{}'s own classifier: accuracy {:.2%}", args.model_arch, identity["classifier_accuracy"])
    about = {
        "arch": args.model_arch,
        "train_set": args.dataset,
        "eps": args.eps,
        "node": identity.get("node"),
        "num_classes": num_classes,
        "run": args.run_name,
        "made_from": {key: identity[key] for key in repfiles.MODEL if key in identity},
        "reps": {"train": str(train_path), "val": str(val_path)},
    }
    folder = start_folder(args.runs / args.run_name)
    runs.write_arguments(folder / "args.json", vars(args))
    settings = probes.Training(args.epochs, args.batch, args.lr, seed=args.seed)
    seeds = [args.seed + i for i in range(args.num_probes)]
    started = time.perf_counter()
    boards = [runs.scalars(folder / str(i)) for i in range(len(seeds))]

    def on_step(step: int, losses: Tensor) -> None:
        if step % args.log_every_n_batches == 0:
            for add_scalar, loss in zip(boards, losses.tolist()):
                add_scalar("loss/train_batch", loss, step)

    def on_epoch(epoch: probes.Epoch, best: probes.Best) -> None:
        for i, (add_scalar, probe) in enumerate(zip(boards, epoch.probes)):
            add_scalar("loss/train", epoch.train_losses[i], epoch.number)
            add_scalar("loss/val", probe.loss, epoch.number)
            add_scalar("accuracy/val", probe.accuracy, epoch.number)
            add_scalar("lr", epoch.lr, epoch.number)
            if best.by_accuracy[i] is probe:
                probes.save(folder / str(i) / probes.BEST_ACCURACY, probe, about)
            if best.by_loss[i] is probe:
                probes.save(folder / str(i) / probes.BEST_LOSS, probe, about)
        scores = ", ".join(f"{probe.accuracy:.2%}" for probe in epoch.probes)
        logger.info("epoch {}/{}: validation accuracy {}", epoch.number, args.epochs, scores)

    epochs = probes.train(
        train_part,
        val_part,
        num_classes,
        seeds,
        settings,
        device=args.device,
        on_step=on_step,
        quiet=args.quiet,
    )
    best = probes.Best.of(epochs, on_epoch)
    scores = [
        {"seed": probe.seed, "accuracy": probe.accuracy, "epoch": probe.epoch, "best_loss": other.loss}
        for probe, other in zip(best.by_accuracy, best.by_loss)
    ]
    summary: dict[str, Any] = {**about, "start": folder.name, "probes": scores, **runs.provenance()}
    files.write_json(folder / "finished.json", summary)
    files.write_json(args.runs / args.run_name / "finished.json", summary)
    best_scores = ", ".join(f"{probe.accuracy:.2%}" for probe in best.by_accuracy)
    logger.info(
        "{} probes of {} on {:,} x {}: best validation accuracy {} in {:.1f} s, wrote {}",
        len(seeds),
        args.model_arch,
        *train_part.reps.shape,
        best_scores,
        time.perf_counter() - started,
        folder,
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    extractor = Extractor(args)
    if args.epochs == 0 or args.num_probes == 0:
        for split in repfiles.FILE_NAMES:
            extractor(split)
        return
    train(args, extractor)


if __name__ == "__main__":
    cli.run(main)
