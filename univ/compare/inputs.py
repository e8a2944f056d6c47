"""A comparison's inputs: which models look at which images -> their extractions, through the cache where there is one.

`rep.py` and `func.py` share everything up to here; they differ in the measures they apply.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from univ import cli, files, runs
from univ.data import (
    DATASETS,
    REFUSED,
    DatasetNames,
    Images,
    dataset_name,
    find_dataset,
    indices,
    open_images,
    trainable,
)
from univ.data.loaders import Batches
from univ.eps import EPS
from univ.errors import InputError
from univ.inversion import images as inverted
from univ.inversion.record import read_column, read_origin
from univ.models import (
    MODELS_HELP,
    Classifier,
    Source,
    default_models,
    file_stem,
    find_sources,
    require_size,
    source_text,
)
from univ.reps.cache import RepCache
from univ.reps.extract import Extraction, extract, extract_nodes
from univ.reps.identity import Identity, Inputs, hash_indices
from univ.reps.nodes import Reader, find_nodes, is_pattern, node_folder, node_label
from univ.results import exp_spellings

INDEX_DIR = Path("results/indices")
READ_BYTES = 2**30  # of representations at several nodes that are read in one pass


def tag(text: str) -> str:
    """A number, kept as typed because it becomes part of file names."""
    cli.number(text)
    try:
        return files.file_name(text.strip(), "the tag")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags rep.py and func.py share, except those whose letters differ between the two."""
    group = add_selection(parser, batch=64)
    text = f"these models only: {MODELS_HELP}; default: those the study compares in this setting"
    group.add_argument("--model-names", type=source_text, nargs="+", metavar="MODEL", help=text)
    add = parser.add_argument_group("inverted and adversarial images").add_argument
    flag = {"type": int, "choices": (0, 1), "default": 0}
    add("-i", "--inv", **flag, help="1: compare on images inverted through each model")
    text = "1: with -i 1, one pool of inverted images, an equal share from each model"
    add("-s", "--sample", **flag, nargs="?", const=1, help=text)
    text = "1: the files in --inverted-imgs-dir are adversarial images made for each model"
    add("-v", "--adv", **flag, help=text)
    add("--inverted-imgs-dir", type=cli.existing_dir, help="holds <model>_<eps>.pt; default: data/<dataset>/inverted")
    add = add_output(parser).add_argument
    add("--no-comparisons", action="store_true", help="only fill the cache")
    text = (
        "write confidence intervals over images at this level (0.95 when none is given) to ..._ci.csv beside the "
        "matrix: func.py by a bootstrap, rep.py by a jackknife, which takes 20 times as long (rtd: over its trials)"
    )
    add("--ci", type=cli.share, nargs="?", const=0.95, help=text)


def add_selection(parser: argparse.ArgumentParser, *, batch: int) -> argparse._ArgumentGroup:
    """Add the flags that choose images, and where models are looked for."""
    group = parser.add_argument_group("models and images")
    add = group.add_argument
    add("-d", "--dataset", choices=DatasetNames([*DATASETS, *REFUSED]), default="imagenet", help="images to compare on")
    add("-m", "--models", choices=DatasetNames(trainable()), default="imagenet", help="what the models were trained on")
    text = "L2 radius the models were trained with, pixel units of [0, 1]"
    add("-o", "--eps", choices=EPS, default="eps3", help=text)
    add("-e", "--exp", type=tag, default="0", help="tag of the index file and of the results' names, a number")
    text = "folder of the checkpoints, or one that holds <eps>/ or <models>/<eps>/; default: data/cnns"
    add("--model-dir", type=cli.existing_dir, help=text)
    cli.add_pixel_statistics(group)
    add("--data-path", type=cli.existing_path, help="where the images are, when not at the data set's usual place")
    add("--labels-path", type=cli.existing_file, help="CSV of labels, where the images do not bring theirs")
    text = "images drawn when there is no index file; default: 10000 or all if fewer; CIFAR-10, digits: all"
    add("--num-inputs", type=cli.positive_int, help=text)
    text = "holds <dataset>/indices_<exp>.csv; drawn (--seed) and saved if missing"
    add("--index-file-dir", type=cli.output_dir, default=INDEX_DIR, help=text)
    add("-b", "--batch", type=cli.positive_int, default=batch, help="images per forward pass")
    text = "side of the images, pixels, where the models take different sizes; default: the one they all take"
    add("--image-size", type=cli.positive_int, metavar="PIXELS", help=text)
    cli.add_fast_images(group)
    return group


def add_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of where results and representations go."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--results", type=cli.output_dir, default=Path("results"), help="folder of the result CSVs")
    add("--cache-dir", type=cli.output_dir, help="keep representations and outputs here, and use what is there")
    add("--config-file-path", type=cli.output_file, help="write the arguments as JSON here, once")
    add("--overwrite", action="store_true", help="compute results anew that are there already")
    return group


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Answer flags that contradict each other, before any work."""
    if args.dataset in REFUSED:
        find_dataset(args.dataset)  # says why
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
    return next((folder for folder in (root / dataset_name(train_set) / eps, root / eps) if folder.is_dir()), root)


@dataclass(frozen=True)
class Models:
    """The models that are compared, and what they make of images.

    Attributes:
        train_set, eps: what they were trained on, name of the radius they were trained with.
        sources: by name; a model is loaded when it first has to look at images.
        device, precision, batch, workers, quiet: how they look at them.
        size: side of the images that they all look at; None for the one that they take.
        cache_dir: what they made of images is kept here; None to keep it nowhere.
        node, pool: where their representations are read, see `nodes.Reader`; None for where the study reads.
    """

    train_set: str
    eps: str
    sources: Mapping[str, Source]
    device: torch.device
    precision: str = "fp32"
    batch: int = 64
    workers: int = 0
    size: int | None = None
    cache_dir: Path | None = None
    quiet: bool = False
    node: str | None = None
    pool: str | None = None
    _loaded: dict[str, Classifier] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, node: str | None, pool: str | None) -> "Models":
        """The same models, read at a node, their cache in the node's folder."""
        cache_dir = self.cache_dir and node_folder(self.cache_dir, node, pool)
        there = replace(self, node=node, pool=pool, cache_dir=cache_dir)
        object.__setattr__(there, "_loaded", self._loaded)  # loaded once for all nodes
        return there

    def find_nodes(self, patterns: list[str]) -> list[str]:
        """The nodes that patterns name in every model.

        Raises:
            InputError: a model has no such node.
        """
        if not any(map(is_pattern, patterns)):
            return list(dict.fromkeys(patterns))
        by_model = {name: find_nodes(self.network(name), patterns) for name in self.sources}
        nodes = list(dict.fromkeys(itertools.chain(*by_model.values())))
        for name, own in by_model.items():
            if lacking := [node for node in nodes if node not in own]:
                raise InputError(
                    f"--node {' '.join(patterns)}: {name} has no {lacking[0]}, which others have: name nodes that all "
                    "models have, such as head, or compare layers of different networks with scripts/layers.py"
                )
        return nodes

    @cached_property
    def image_size(self) -> int:
        """Side of the images the models look at, pixels.

        Raises:
            InputError: the models take different sizes, so that they would not see the same images.
        """
        if self.size is not None:
            return self.size
        sizes = {name: source.image_size for name, source in self.sources.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"the models take images of different sizes ({sizes}): choose one with --image-size, or compare "
                "them apart, see --model-names"
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
        cache = self._cache(images)
        extractions = {name: cache.fetch(*self._entry(name, images), way) for name, way in ways.items()}
        cache.finish()  # also what a killed run left
        return extractions

    def readings(self, name: str, images: ImageSet, nodes: Sequence[str], pool: str | None) -> dict[str, Extraction]:
        """A model's representations of the images at several nodes, through the cache, which is needed.

        What the cache lacks is read in one pass over the images, or in several where memory does not hold it.
        """
        places = {node: self.at(node, pool) for node in nodes}
        caches = {node: (there._cache(images), *there._entry(name, images)) for node, there in places.items()}
        missing = [node for node, (cache, *entry) in caches.items() if cache.get(*entry) is None]
        for some in self._fitting(name, images, missing, pool):
            readings = extract_nodes(
                self.network(name), images.images, images.chosen, nodes=some, pool=pool, name=name, **self._how()
            )
            for node in some:
                cache, *entry = caches[node]
                cache.put(*entry, readings.at(node))
        for cache, *_ in caches.values():
            cache.finish()
        return {node: cache.get(*entry) for node, (cache, *entry) in caches.items()}

    def _fitting(self, name: str, images: ImageSet, nodes: list[str], pool: str | None) -> Iterator[list[str]]:
        """The nodes in groups whose representations of all images fit into memory, or that have only one node."""
        if not nodes:
            return
        first, _ = next(iter(Batches(images.images, 1, device=self.device, indices=images.chosen[:1])))
        with torch.no_grad(), Reader(self.network(name), nodes, pool) as reader:
            sizes = {node: 4 * len(images) * value.numel() for node, value in reader(first).items()}
        group: list[str] = []
        for node, size in sizes.items():
            if group and size + sum(sizes[other] for other in group) > READ_BYTES:
                yield group
                group = []
            group.append(node)
        yield group

    def _cache(self, images: ImageSet) -> RepCache:
        return RepCache(self.cache_dir, images.dataset, self.eps, images.inverted)

    def _entry(self, name: str, images: ImageSet) -> tuple[str, Identity]:
        """Key and identity of a model's extraction in the cache."""
        source = self.sources[name]
        node = node_label(self.node, self.pool, source.spec.node)
        identity = Identity(images.identity, source.arch, node, self.hashes[name], self.precision)
        return f"{images.source}/{name}" if images.source else name, identity

    def _how(self) -> dict[str, Any]:
        """How a model looks at images."""
        names = ("device", "workers", "precision", "quiet")
        return {"batch_size": self.batch, **{name: getattr(self, name) for name in names}}

    def network(self, name: str) -> Classifier:
        """A model, loaded when it is first asked for."""
        if name not in self._loaded:
            self._loaded[name] = model = self.sources[name].load(self.device)
            if self.size not in (None, model.image_size):
                require_size(model, self.size)
        return self._loaded[name]

    def _extract(self, name: str, images: ImageSet, flatten: bool) -> Extraction:
        network, pool = self.network(name), self.pool
        if not (flatten or pool or (self.node is None and network.spec.pool)):
            pool = "none"
        what = f"{name} on images of {images.source}" if images.source else name
        where = {"node": self.node, "pool": pool, "name": what}
        return extract(network, images.images, images.chosen, **where, **self._how())


def open_image_sets(args: argparse.Namespace, models: Models) -> list[ImageSet]:
    """The images that the flags ask for: one set that all models see, or one for each model, made through it."""
    if not (args.inv or args.adv):
        images = _open_own(args, models)
        return [ImageSet(dataset_name(args.dataset), images, _chosen(args, len(images)))]
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
    return ImageSet(dataset_name(args.dataset), _open_own(args, models), first[: args.num_inputs])


def _open_own(args: argparse.Namespace, models: Models) -> Images:
    """The data set's own images, at the size that the models take."""
    paths = {"data_path": args.data_path, "labels_path": args.labels_path}
    return open_images(args.dataset, image_size=models.image_size, fast=args.fast_images, **paths)


def _chosen(args: argparse.Namespace, length: int) -> Tensor:
    """(n,) which images are compared, from the index file or drawn into it."""
    folder = args.index_file_dir / dataset_name(args.dataset)
    for spelling in exp_spellings(args.exp):
        path = folder / f"indices_{spelling}.csv"
        if path.exists():
            files.remove_orphans(path)
            return indices.read_indices(path, length)
    n = args.num_inputs or min(find_dataset(args.dataset).num_compared or length, length)
    if n > length:
        raise InputError(f"--num-inputs {n}: {args.dataset} holds {length} images")
    name = files.file_name(f"indices_{args.exp}.csv", "index file")
    return indices.read_or_draw(folder / name, n, length, args.seed)


def _first(args: argparse.Namespace, images: Images, source: str = "") -> ImageSet:
    """The first --num-inputs of images made through models."""
    n = args.num_inputs or len(images)
    if n > len(images):
        raise InputError(f"--num-inputs {n}: only {len(images)} inverted images are there")
    return ImageSet(dataset_name(args.dataset), images, torch.arange(n), True, source)


def _inverted_files(args: argparse.Namespace, models: Models) -> dict[str, Path]:
    folder = args.inverted_imgs_dir or find_dataset(args.dataset).inverted_path
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
    """Begin a run of rep.py or func.py: which models look at which images.

    Raises:
        FileNotFoundError: a checkpoint or a file of images is missing.
        InputError: the models, the images and the flags do not go together.
    """
    models = start_models(args)
    return models, open_image_sets(args, models)


def begin(args: argparse.Namespace) -> None:
    """Begin a run: log, seeds, the arguments' file."""
    runs.start(quiet=args.quiet)
    runs.seed_everything(args.seed)
    if args.config_file_path is not None and not files.destination(args.config_file_path).exists():
        files.write_json(args.config_file_path, vars(args))


def start_models(args: argparse.Namespace) -> Models:
    """Begin a run, and find its models.

    Raises:
        FileNotFoundError: a checkpoint is missing.
    """
    begin(args)
    names = args.model_names or default_models(args.models, args.eps)
    folder = model_folder(args.models, args.eps, args.model_dir)
    sources = find_sources(names, folder=folder, dataset=args.models, mean=args.mean, std=args.std)
    work = {name: getattr(args, name) for name in ("device", "precision", "batch", "workers", "cache_dir", "quiet")}
    return Models(args.models, args.eps, sources, size=args.image_size, **work)
