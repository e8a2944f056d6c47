"""A comparison's inputs: which models look at which images -> their extractions, through the cache where there is one.

`rep.py` and `func.py` share everything up to here; they differ in the measures they apply.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from univ import cli, files, runs
from univ.data import DATASETS, REFUSED, Images, find_dataset, indices, open_images, trainable
from univ.eps import EPS
from univ.errors import InputError
from univ.inversion import images as inverted
from univ.inversion.record import read_column, read_origin
from univ.models import MODELS_HELP, Classifier, Source, default_models, file_stem, find_sources, source_text
from univ.reps.cache import RepCache
from univ.reps.extract import Extraction, extract
from univ.reps.identity import Identity, Inputs, hash_indices
from univ.results import exp_spellings

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
    group = parser.add_argument_group("models and images")
    add = group.add_argument
    add("-d", "--dataset", choices=[*DATASETS, *REFUSED], default="imagenet", help="images to compare on")
    add("-m", "--models", choices=trainable(), default="imagenet", help="what the models were trained on")
    text = "L2 radius the models were trained with, pixel units of [0, 1]"
    add("-o", "--eps", choices=EPS, default="eps3", help=text)
    add("-e", "--exp", type=tag, default="0", help="tag of the index file and of the results' names, a number")
    text = "folder of the checkpoints, or one that holds <eps>/ or <models>/<eps>/; default: data/cnns"
    add("--model-dir", type=cli.existing_dir, help=text)
    text = f"these models only: {MODELS_HELP}; default: those the study compares in this setting"
    add("--model-names", type=source_text, nargs="+", metavar="MODEL", help=text)
    cli.add_pixel_statistics(group)
    add("--data-path", type=cli.existing_path, help="where the images are, when not at the data set's usual place")
    add("--labels-path", type=cli.existing_file, help="CSV of labels, where the images do not bring theirs")
    text = "images drawn when there is no index file; default: 10000 or all if fewer; CIFAR-10, digits: all"
    add("--num-inputs", type=cli.positive_int, help=text)
    text = "holds <dataset>/indices_<exp>.csv; drawn (--seed) and saved if missing"
    add("--index-file-dir", type=cli.output_dir, default=INDEX_DIR, help=text)
    add("-b", "--batch", type=cli.positive_int, default=64, help="images per forward pass")
    cli.add_fast_images(group)
    add = parser.add_argument_group("inverted and adversarial images").add_argument
    flag = {"type": int, "choices": (0, 1), "default": 0}
    add("-i", "--inv", **flag, help="1: compare on images inverted through each model")
    text = "1: with -i 1, one pool of inverted images, an equal share from each model"
    add("-s", "--sample", **flag, nargs="?", const=1, help=text)
    text = "1: the files in --inverted-imgs-dir are adversarial images made for each model"
    add("-v", "--adv", **flag, help=text)
    add("--inverted-imgs-dir", type=cli.existing_dir, help="holds <model>_<eps>.pt; default: data/<dataset>/inverted")
    add = parser.add_argument_group("output").add_argument
    add("--results", type=cli.output_dir, default=Path("results"), help="folder of the result CSVs")
    add("--cache-dir", type=cli.output_dir, help="keep representations and outputs here, and use what is there")
    add("--no-comparisons", action="store_true", help="only fill the cache")
    add("--config-file-path", type=cli.output_file, help="write the arguments as JSON here, once")
    add("--overwrite", action="store_true", help="compute results anew that are there already")
    text = (
        "write confidence intervals over images at this level (0.95 when none is given) to ..._ci.csv beside the "
        "matrix: func.py by a bootstrap, rep.py by a jackknife, which takes 20 times as long (rtd: over its trials)"
    )
    add("--ci", type=cli.share, nargs="?", const=0.95, help=text)


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
class ImageSet:
    """Images that models are compared on.

    Attributes:
        dataset: what the images are of.
        images: where they are read; their `labels` are -1 where nobody knows them.
        chosen: (n,) which of them are compared, in this order.
        inverted: made through models (inverted or adversarial), not the data set's own.
        source: the model through which they were made; empty where all models see one set.
    """

    dataset: str
    images: Images
    chosen: Tensor
    inverted: bool = False
    source: str = ""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> Tensor:
        """(n,) int64; -1 where unknown."""
        return self.images.labels[self.chosen]

    @cached_property
    def identity(self) -> Inputs:
        """What tells them from other images."""
        images, indices_hash = self.images, hash_indices(self.chosen)
        return Inputs(self.dataset, images.fingerprint, images.transform_name, indices_hash, len(self))


def model_folder(train_set: str, eps: str, model_dir: Path | None) -> Path:
    """Where checkpoints are looked for: `model_dir/<train set>/<eps>`, `model_dir/<eps>`, else `model_dir` itself."""
    root = Path("data/cnns") if model_dir is None else model_dir
    return next((folder for folder in (root / train_set / eps, root / eps) if folder.is_dir()), root)


@dataclass(frozen=True)
class Models:
    """The models that are compared, and what they make of images.

    Attributes:
        train_set, eps: what they were trained on, name of the radius they were trained with.
        sources: by name; a model is loaded when it first has to look at images.
        device, precision, batch, workers, quiet: how they look at them.
        cache_dir: what they made of images is kept here; None to keep it nowhere.
    """

    train_set: str
    eps: str
    sources: Mapping[str, Source]
    device: torch.device
    precision: str = "fp32"
    batch: int = 64
    workers: int = 0
    cache_dir: Path | None = None
    quiet: bool = False
    _loaded: dict[str, Classifier] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def image_size(self) -> int:
        """Side of the images the models take, pixels.

        Raises:
            InputError: the models take different sizes, so that they would not see the same images.
        """
        sizes = {name: source.image_size for name, source in self.sources.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"the models take images of different sizes ({sizes}): compare them apart, see --model-names"
            )
        return next(iter(sizes.values()))

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each model's checkpoint, or of its weights and code where it has none."""
        return {name: source.digest for name, source in self.sources.items()}

    def extractions(self, images: ImageSet, *, flatten: bool = True) -> dict[str, Extraction]:
        """Every model's representations and logits of the images, from the cache where it holds them.

        Args:
            flatten: False keeps activations (N, C, H, W), which are not cached.
        """
        ways = {name: partial(self._extract, name, images, flatten) for name in self.sources}
        if self.cache_dir is None or not flatten:
            return {name: extract_it() for name, extract_it in ways.items()}
        cache, extractions = RepCache(self.cache_dir, images.dataset, self.eps, images.inverted), {}
        for name, extract_it in ways.items():
            source = self.sources[name]
            identity = Identity(images.identity, source.arch, source.spec.node, self.hashes[name], self.precision)
            key = f"{images.source}/{name}" if images.source else name
            extractions[name] = cache.fetch(key, identity, extract_it)
        cache.finish()  # also what a killed run left
        return extractions

    def _extract(self, name: str, images: ImageSet, flatten: bool) -> Extraction:
        if name not in self._loaded:
            self._loaded[name] = self.sources[name].load(self.device)
        what = f"{name} on images of {images.source}" if images.source else name
        how = {"device": self.device, "workers": self.workers, "precision": self.precision, "quiet": self.quiet}
        network, chosen = self._loaded[name], images.chosen
        return extract(network, images.images, chosen, batch_size=self.batch, flatten=flatten, name=what, **how)


def open_image_sets(args: argparse.Namespace, models: Models) -> list[ImageSet]:
    """The images that the flags ask for: one set that all models see, or one for each model, made through it."""
    if not (args.inv or args.adv):
        images = _open_own(args, models)
        return [ImageSet(args.dataset, images, _chosen(args, len(images)))]
    paths = _inverted_files(args, models)
    for name, path in paths.items():
        _require_made_through(models, name, path)
    if args.sample:
        labels = _target_labels(args, next(iter(paths.values())))
        return [_first(args, inverted.pool_inverted(paths, args.num_inputs, args.seed, labels))]
    return [
        _first(args, inverted.open_inverted(path, _target_labels(args, path)), name) for name, path in paths.items()
    ]


def open_targets(args: argparse.Namespace, models: Models) -> ImageSet:
    """The images that the inversions aimed at.

    Raises:
        InputError: a report is missing, or the models were inverted towards different images.
    """
    reports = [path.with_suffix(".csv") for path in _inverted_files(args, models).values()]
    first, *others = (read_column(report, "target_index") for report in reports)
    if not all(first.equal(other) for other in others):
        raise InputError("the models were inverted towards different images: invert them with the same index files")
    return ImageSet(args.dataset, _open_own(args, models), first[: args.num_inputs])


def _open_own(args: argparse.Namespace, models: Models) -> Images:
    """The data set's own images, at the size that the models take."""
    paths = {"data_path": args.data_path, "labels_path": args.labels_path}
    return open_images(args.dataset, image_size=models.image_size, fast=args.fast_images, **paths)


def _chosen(args: argparse.Namespace, length: int) -> Tensor:
    """(n,) which images are compared, from the index file or drawn into it."""
    folder = args.index_file_dir / args.dataset
    for spelling in exp_spellings(args.exp):
        path = folder / f"indices_{spelling}.csv"
        if path.exists():
            files.remove_orphans(path)
            return indices.read_indices(path, length)
    n = args.num_inputs or min(DATASETS[args.dataset].num_compared or length, length)
    if n > length:
        raise InputError(f"--num-inputs {n}: {args.dataset} holds {length} images")
    name = files.file_name(f"indices_{args.exp}.csv", "index file")
    return indices.read_or_draw(folder / name, n, length, args.seed)


def _first(args: argparse.Namespace, images: Images, source: str = "") -> ImageSet:
    """The first --num-inputs of images made through models."""
    n = args.num_inputs or len(images)
    if n > len(images):
        raise InputError(f"--num-inputs {n}: only {len(images)} inverted images are there")
    return ImageSet(args.dataset, images, torch.arange(n), True, source)


def _inverted_files(args: argparse.Namespace, models: Models) -> dict[str, Path]:
    folder = args.inverted_imgs_dir or DATASETS[args.dataset].inverted_path
    return {name: inverted.find_inverted(folder, file_stem(name), models.eps) for name in models.sources}


def _require_made_through(models: Models, name: str, path: Path) -> None:
    """Refuse images made through another checkpoint of a model, or others than their JSON describes."""
    record, mine = read_origin(path), models.hashes[name]
    if not record:
        logger.info("{} has no JSON: nobody knows whether it was made through {}", path, models.sources[name])
    checkpoint = record.get("settings", {}).get("checkpoint", mine)
    if checkpoint != mine:
        raise InputError(
            f"{path} was made through another checkpoint ({checkpoint[:12]}...) than {models.sources[name]} "
            f"({mine[:12]}...): invert anew (inversion.py --overwrite), or see --model-dir"
        )


def _target_labels(args: argparse.Namespace, path: Path) -> Tensor | None:
    """Labels of the targets: from the report beside the images, else --labels-path, else unknown."""
    report = path.with_suffix(".csv")
    if report.exists():
        return read_column(report, "target_label")
    return indices.read_labels(args.labels_path) if args.labels_path is not None else None


def start(args: argparse.Namespace) -> tuple[Models, list[ImageSet]]:
    """Begin a run of rep.py or func.py: log, seeds, the arguments' file; which models look at which images.

    Raises:
        FileNotFoundError: a checkpoint or a file of images is missing.
        InputError: the models, the images and the flags do not go together.
    """
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    if args.config_file_path is not None and not files.destination(args.config_file_path).exists():
        files.write_json(args.config_file_path, vars(args))
    names = args.model_names or default_models(args.models, args.eps)
    folder = model_folder(args.models, args.eps, args.model_dir)
    sources = find_sources(names, folder=folder, dataset=args.models, mean=args.mean, std=args.std)
    work = {name: getattr(args, name) for name in ("device", "precision", "batch", "workers", "cache_dir", "quiet")}
    models = Models(args.models, args.eps, sources, **work)
    return models, open_image_sets(args, models)
