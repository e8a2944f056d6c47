"""A comparison's inputs: which models look at which images -> their extractions, through the cache where there is one.

`rep.py` and `func.py` share everything up to here; they differ in the measures they apply.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from univ import cli, files, models, runs
from univ.data import DATASETS, REFUSED, Images, find_dataset, indices, open_images, trainable
from univ.data.loaders import batches
from univ.eps import EPS
from univ.errors import InputError
from univ.files import schemas
from univ.inversion import images as inverted
from univ.models.precision import arithmetic
from univ.reps import extract as activations
from univ.reps.cache import Identity, Inputs, RepCache, hash_indices
from univ.reps.extract import Extraction
from univ.results import exp_spellings

CI_HELP = (
    "write confidence intervals over images at this level (0.95 when none is given) to ..._ci.csv beside the matrix: "
    "func.py by a bootstrap, rep.py by a jackknife, which takes 20 times as long (rtd: over its trials)"
)
INDEX_DIR = Path("results/indices")


def tag(text: str) -> str:
    """A number, kept as typed because it becomes part of file names."""
    cli.number(text)
    try:
        return files.file_name(text.strip(), "the tag")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags rep.py and func.py share, except those whose letters differ between the two."""
    add = parser.add_argument
    group = parser.add_argument_group("models and images")
    add = group.add_argument
    add("-d", "--dataset", choices=[*DATASETS, *REFUSED], default="imagenet", help="images to compare on")
    add("-m", "--models", choices=trainable(), default="imagenet", help="what the models were trained on")
    add(
        "-o", "--eps", choices=EPS, default="eps3", help="L2 radius the models were trained with, pixel units of [0, 1]"
    )
    add("-e", "--exp", type=tag, default="0", help="tag of the index file and of the results' names, a number")
    add(
        "--model-dir",
        type=cli.existing_dir,
        help="folder of the checkpoints, or one that holds <eps>/ or <models>/<eps>/; default: data/cnns",
    )
    add(
        "--model-names",
        nargs="+",
        metavar="MODEL",
        help="these models only; default: those the study compares in this setting",
    )
    add("--data-path", type=cli.existing_path, help="where the images are, when not at the data set's usual place")
    add("--labels-path", type=cli.existing_file, help="CSV of labels, where the images do not bring theirs")
    add(
        "--num-inputs",
        type=cli.positive_int,
        help="images drawn when there is no index file; default: 10000 or all if fewer; CIFAR-10, digits: all",
    )
    add(
        "--index-file-dir",
        type=cli.output_dir,
        default=INDEX_DIR,
        help="holds <dataset>/indices_<exp>.csv; drawn (--seed) and saved if missing",
    )
    add("-b", "--batch", type=cli.positive_int, default=64, help="images per forward pass")
    cli.add_fast_images(group)
    group = parser.add_argument_group("inverted and adversarial images")
    add = group.add_argument
    add("-i", "--inv", type=int, choices=(0, 1), default=0, help="1: compare on images inverted through each model")
    add(
        "-s",
        "--sample",
        type=int,
        choices=(0, 1),
        nargs="?",
        const=1,
        default=0,
        help="1: with -i 1, one pool of inverted images, an equal share from each model",
    )
    add(
        "-v",
        "--adv",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: the files in --inverted-imgs-dir are adversarial images made for each model",
    )
    add("--inverted-imgs-dir", type=cli.existing_dir, help="holds <model>_<eps>.pt; default: data/<dataset>/inverted")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--results", type=cli.output_dir, default=Path("results"), help="folder of the result CSVs")
    add("--cache-dir", type=cli.output_dir, help="keep representations and outputs here, and use what is there")
    add("--no-comparisons", action="store_true", help="only fill the cache")
    add("--config-file-path", type=cli.output_file, help="write the arguments as JSON here, once")
    add("--overwrite", action="store_true", help="compute results anew that are there already")
    add("--ci", type=cli.share, nargs="?", const=0.95, help=CI_HELP)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Answer flags that contradict each other, before any work."""
    find_dataset(args.dataset)  # says why a refused one is
    if args.no_comparisons and args.cache_dir is None:
        parser.error("--no-comparisons only fills the cache: say where with --cache-dir")
    if args.sample and not args.inv:
        parser.error("--sample pools inverted images: use it with -i 1")
    if args.adv and args.inverted_imgs_dir is None:
        parser.error("-v 1 compares on adversarial images: give their folder with --inverted-imgs-dir")


@dataclass(frozen=True)
class Setting:
    """One set of models on one set of images.

    Attributes are the flags of the same names; `models` maps each model's name to its checkpoint.
    """

    dataset: str
    train_set: str
    eps: str
    exp: str
    models: Mapping[str, Path]
    device: torch.device
    inverted: bool = False
    adversarial: bool = False
    sample: bool = False
    inverted_dir: Path | None = None
    index_dir: Path = INDEX_DIR
    data_path: Path | None = None
    labels_path: Path | None = None
    num_inputs: int | None = None
    cache_dir: Path | None = None
    batch: int = 64
    workers: int = 0
    precision: str = "fp32"
    seed: int = 0
    quiet: bool = False
    fast_images: bool = False
    _loaded: dict[str, models.Classifier] = field(default_factory=dict, repr=False, compare=False)
    _opened: dict[str | None, Images] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Setting":
        """The setting a command line describes.

        Raises:
            FileNotFoundError: a model's checkpoint is missing.
        """
        names = args.model_names or models.default_models(args.models, args.eps)
        return cls(
            dataset=args.dataset,
            train_set=args.models,
            eps=args.eps,
            exp=args.exp,
            models=find_checkpoints(names, args.models, args.eps, args.model_dir),
            device=args.device,
            inverted=bool(args.inv or args.adv),
            adversarial=bool(args.adv),
            sample=bool(args.sample),
            inverted_dir=args.inverted_imgs_dir,
            index_dir=args.index_file_dir,
            data_path=args.data_path,
            labels_path=args.labels_path,
            num_inputs=args.num_inputs,
            cache_dir=args.cache_dir,
            batch=args.batch,
            workers=args.workers,
            precision=args.precision,
            seed=args.seed,
            quiet=args.quiet,
            fast_images=args.fast_images,
        )

    @property
    def rowwise(self) -> bool:
        """Whether every model has its own images (inverted or adversarial, not pooled)."""
        return self.inverted and not self.sample

    @cached_property
    def image_size(self) -> int:
        """Side of the images the models take, pixels.

        Raises:
            InputError: the models take different sizes, so that they would not see the same images.
        """
        sizes = {name: models.find_arch(name, self.train_set).input_size for name in self.models}
        default = DATASETS[self.train_set].image_size
        sizes = {name: size or default for name, size in sizes.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"the models take images of different sizes ({sizes}): compare them apart, see --model-names"
            )
        return next(iter(sizes.values()))

    @cached_property
    def _images(self) -> Images:
        return open_images(
            self.dataset,
            image_size=self.image_size,
            data_path=self.data_path,
            labels_path=self.labels_path,
            fast=self.fast_images,
        )

    @cached_property
    def _indices(self) -> Tensor:
        """(n,) which images are compared, from the index file or drawn into it."""
        length = len(self._images)
        folder = self.index_dir / self.dataset
        for spelling in exp_spellings(self.exp):
            path = folder / f"indices_{spelling}.csv"
            if path.exists():
                files.remove_orphans(path)
                return indices.read_indices(path, length)
        n = self.num_inputs or min(DATASETS[self.dataset].num_compared or length, length)
        if n > length:
            raise InputError(f"--num-inputs {n}: {self.dataset} holds {length} images")
        name = files.file_name(f"indices_{self.exp}.csv", "index file")
        return indices.read_or_draw(folder / name, n, length, self.seed)

    @cached_property
    def image_files(self) -> dict[str, Path]:
        """Each model's file of inverted (or adversarial) images.

        Raises:
            FileNotFoundError: a file is missing (the message says what the folder holds).
            InputError: a file was made through another checkpoint, or is not the one that its JSON describes.
        """
        folder = self.inverted_dir or DATASETS[self.dataset].inverted_path
        paths = {name: inverted.find_inverted(folder, models.file_stem(name), self.eps) for name in self.models}
        for name, path in paths.items():
            self._require_made_through(name, path)
        return paths

    def _require_made_through(self, name: str, path: Path) -> None:
        record = inverted.read_origin(path)
        if not record:
            logger.info("{} has no JSON: nobody knows whether it was made through {}", path, self.models[name])
        checkpoint = record.get("settings", {}).get("checkpoint", self.weights[name])
        if checkpoint != self.weights[name]:
            raise InputError(
                f"{path} was made through another checkpoint ({checkpoint[:12]}...) than {self.models[name]} "
                f"({self.weights[name][:12]}...): invert anew (inversion.py --overwrite), or see --model-dir"
            )

    @property
    def sources(self) -> list[str | None]:
        """The models whose images are compared on, one set each; `[None]` when all models see one set."""
        return list(self.models) if self.rowwise else [None]

    def images(self, source: str | None = None) -> tuple[Images, Tensor]:
        """The images compared on and the indices of those used; their `labels` are -1 where nobody knows them."""
        if not self.inverted:
            return self._images, self._indices
        if source not in self._opened:
            if self.sample:
                labels = self._target_labels(next(iter(self.image_files.values())))
                self._opened[source] = inverted.pool_inverted(self.image_files, self.num_inputs, self.seed, labels)
            else:
                path = self.image_files[str(source)]
                self._opened[source] = inverted.open_inverted(path, self._target_labels(path))
        images = self._opened[source]
        n = len(images)
        if self.num_inputs is not None and self.num_inputs > n:
            raise InputError(f"--num-inputs {self.num_inputs}: only {n} inverted images are there")
        return images, torch.arange(self.num_inputs or n)

    def _target_labels(self, path: Path) -> Tensor | None:
        """Labels of the targets: from the report beside the images, else --labels-path, else unknown."""
        report = path.with_suffix(".csv")
        if report.exists():
            return read_report(report, "target_label")
        return indices.read_labels(self.labels_path) if self.labels_path is not None else None

    def labels(self, source: str | None = None) -> Tensor:
        """(n,) int64 labels of the images compared on; -1 where unknown."""
        images, chosen = self.images(source)
        return images.labels[chosen]

    def inputs(self, source: str | None = None) -> Inputs:
        """Identity of the images compared on."""
        images, chosen = self.images(source)
        return Inputs(self.dataset, images.fingerprint, images.transform_name, hash_indices(chosen), len(chosen))

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 of each model's checkpoint."""
        return {name: files.content_hash([path]) for name, path in self.models.items()}

    def identity(self, name: str, source: str | None = None) -> Identity:
        """Where `name`'s representations of the images of `source` come from."""
        node = models.find_arch(name, self.train_set).node
        return Identity(self.inputs(source), name, node, self.weights[name], self.precision)

    def describe(self) -> dict[str, Any]:
        """What decides a score besides the measure's own settings, for the JSON beside each result."""
        return {
            "inputs": {source or "all": vars(self.inputs(source)) for source in self.sources},
            "models": {name: {"checkpoint": self.weights[name]} for name in self.models},
            "precision": self.precision,
        }

    def classifier(self, name: str) -> models.Classifier:
        """The model in evaluation mode on the device; loaded once."""
        if name not in self._loaded:
            self._loaded[name] = models.load_model(name, self.train_set, self.models[name], device=self.device)
        return self._loaded[name]

    def extract(self, name: str, source: str | None = None, *, flatten: bool = True) -> Extraction:
        """One model's representations and logits of the images of `source`."""
        label = name if source is None else f"{name} on images of {source}"
        return self._extract(name, *self.images(source), label, flatten=flatten)

    def extract_targets(self) -> dict[str, Extraction]:
        """Every model's representations of the images that the inversions aimed at.

        Raises:
            InputError: a report is missing, or the models were inverted towards different images.
        """
        targets = {
            source: read_report(path.with_suffix(".csv"), "target_index") for source, path in self.image_files.items()
        }
        first, *others = targets.values()
        if not all(first.equal(other) for other in others):
            raise InputError("the models were inverted towards different images: invert them with the same index files")
        chosen = first[: self.num_inputs]
        return {name: self._extract(name, self._images, chosen, f"{name} on targets") for name in self.models}

    def _extract(self, name: str, images: Images, chosen: Tensor, label: str, *, flatten: bool = True) -> Extraction:
        with arithmetic(self.precision, self.device):
            loader = batches(images, self.batch, device=self.device, workers=self.workers, indices=chosen)
            model = self.classifier(name)
            return activations.extract(model, loader, len(chosen), flatten=flatten, name=label, quiet=self.quiet)

    def extractions(self, source: str | None = None) -> dict[str, Extraction]:
        """Every model's representations and logits of the images of `source`, from the cache where it holds them."""
        if self.cache_dir is None:
            return {name: self.extract(name, source) for name in self.models}
        cache = RepCache(self.cache_dir, self.dataset, self.eps, self.inverted)
        found = {}
        for name in self.models:
            key = name if source is None else f"{source}/{name}"
            identity = self.identity(name, source)
            cached = cache.get(key, identity)
            if cached is None:
                cached = self.extract(name, source)
                cache.put(key, identity, cached)
            found[name] = cached
        cache.finish()  # also what a killed run left
        return found

    def all_extractions(self) -> Iterator[tuple[str | None, dict[str, Extraction]]]:
        """(source, extractions) of every set of images in turn."""
        for source in self.sources:
            yield source, self.extractions(source)

    def fill_cache(self) -> None:
        """Extract what the cache lacks."""
        for source, found in self.all_extractions():
            logger.info("cache {}: {} models on {}", self.cache_dir, len(found), source or self.dataset)


def start(args: argparse.Namespace) -> Setting:
    """Begin a run of rep.py or func.py: log, seeds, the arguments' file; the setting the arguments describe."""
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    if args.config_file_path is not None and not files.destination(args.config_file_path).exists():
        files.write_json(args.config_file_path, vars(args))
    return Setting.from_args(args)


def read_report(report: Path, column: str) -> Tensor:
    """(n,) int64 column of the report that inversion.py writes beside the images, such as target_label.

    Raises:
        InputError: there is no such file, or it is no such report.
    """
    try:
        table = schemas.read_table(report, schemas.ReportRow, [column])
    except FileNotFoundError as error:
        raise InputError(f"there is no report {report} beside the images: inversion.py writes it") from error
    return torch.tensor(table[column].to_list(), dtype=torch.int64)


def find_checkpoints(names: list[str], train_set: str, eps: str, model_dir: Path | None) -> dict[str, Path]:
    """Each model's checkpoint, looked for in `model_dir`, `model_dir/<eps>` and `model_dir/<train set>/<eps>`.

    Raises:
        FileNotFoundError: a checkpoint is missing, or there is no such folder.
    """
    root = Path("data/cnns") if model_dir is None else model_dir
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root} (see --model-dir)")
    folders = [folder for folder in (root / train_set / eps, root / eps) if folder.is_dir()]
    folder = folders[0] if folders else root
    return {name: models.find_checkpoint(folder, name, train_set) for name in names}
