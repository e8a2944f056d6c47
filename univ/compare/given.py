"""Representations and logits that any other program made: files -> what the comparisons read (--reps, --logits).

A file holds an array (N, ...), row i from sample i: `.npy`; `.npz`, `.safetensors` or torch's `.pt` with it under the
flag's name or as the only one besides `ids` and `labels`. `ids` (N,), whole numbers or text, say which samples the rows
are of: files that have them must agree. `labels` (N,) are the samples' classes. Nothing in a file is executed.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from torch import Tensor

from univ import cli, files
from univ.compare.inputs import ImageSet, begin
from univ.data import DATASETS
from univ.data.indices import read_labels
from univ.errors import InputError
from univ.files.tensors import open_tensor
from univ.measures.base import as_rep
from univ.reps.extract import Extraction

BESIDE = ("ids", "labels")
KEPT = ("eps", "exp", "labels_path", "num_inputs")  # flags of models and images that mean something without either
USELESS = ("cache_dir", "no_comparisons", "precision", "node", "pool", "list_nodes")


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flag --reps or --logits, `what`, and --dataset-name."""
    add = parser.add_argument_group("files of other programs").add_argument
    kind = "representations" if what == "reps" else "logits"
    text = (
        f"compare {kind} from these files (.npy, .npz, .safetensors, .pt) in place of models: arrays (N, ...), row i "
        "from sample i; a model is called as its file; arrays ids and labels (N,) in a file are checked and used"
    )
    add(f"--{what}", nargs="+", type=cli.existing_file, metavar="FILE", help=text)
    text = f"with --{what}: name of the samples in results (default: own); -o says eps0 there unless it is given"
    add("--dataset-name", metavar="NAME", help=text)


def check_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, argv: Sequence[str] | None, what: str
) -> None:
    """Refuse flags of models and images beside files, and --dataset-name without them; fill in the names of both."""
    untouched: list = []  # a list, as flags that may be repeated copy and extend what is there
    parsed = argparse.Namespace(**{action.dest: untouched for action in parser._actions})
    named = {dest for dest, value in vars(parser.parse_args(argv, parsed)).items() if value is not untouched}
    if not getattr(args, what):
        if args.dataset_name is not None:
            parser.error(f"--dataset-name names the samples of files: use it with --{what}")
        return
    of_models = {
        action.dest: "/".join(action.option_strings)
        for group in parser._action_groups
        for action in group._group_actions
        if group.title in ("models and images", "inverted and adversarial images") or action.dest in USELESS
    }
    if useless := [flag for dest, flag in of_models.items() if dest in named and dest not in KEPT]:
        parser.error(f"--{what} compares files, no models on images: leave out {', '.join(useless)}")
    if len(getattr(args, what)) < 2:
        parser.error(f"--{what} compares two files or more")
    try:
        args.dataset = args.models = files.file_name(args.dataset_name or "own", "--dataset-name")
        if args.dataset in DATASETS:
            raise InputError(f"--dataset-name {args.dataset} would replace results of that data set: choose another")
    except InputError as error:
        parser.error(str(error))
    args.eps = args.eps if "eps" in named else "eps0"


@dataclass(frozen=True)
class Given:
    """One file: its array (N, ...), memory-mapped where it can be; ids (N,) text and labels (N,) where it has them."""

    values: Tensor
    ids: np.ndarray | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """What the rows are of, in the place of a data set's images."""

    labels: Tensor
    fingerprint: str
    transform_name: str = "none"

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class GivenModels:
    """The files in the place of models: name -> its array; a file stands for representations and logits alike."""

    arrays: Mapping[str, Tensor]
    hashes: Mapping[str, str]
    precision: str = "as given"
    node: None = None
    pool: None = None

    def extractions(self, images: ImageSet, *, flatten: bool = True) -> dict[str, Extraction]:
        rows = {name: array[: len(images)] for name, array in self.arrays.items()}
        rows = {name: array.flatten(1) if flatten else array for name, array in rows.items()}
        return {name: Extraction(array, array) for name, array in rows.items()}


def start(args: argparse.Namespace, what: str) -> tuple[GivenModels, list[ImageSet]]:
    """Begin a run on files: read and check them.

    Raises:
        InputError: a file is damaged or holds something else; two have one name, or not the same samples.
    """
    begin(args)
    paths: dict[str, Path] = {}
    for path in getattr(args, what):
        if path.stem in paths:
            raise InputError(f"--{what}: {paths[path.stem]} and {path} would both be called {path.stem}: rename one")
        paths[path.stem] = path
    found = {name: read(path, what) for name, path in paths.items()}
    lengths = {name: len(one.values) for name, one in found.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{paths[name]} {n}" for name, n in lengths.items())
        raise InputError(f"--{what}: the files hold different numbers of rows: {listed}")
    if what == "logits" and len(widths := {tuple(one.values.shape[1:]) for one in found.values()}) > 1:
        raise InputError(f"--logits: the files have different classes: (N, C) with C of {sorted(widths)}")
    with_ids = {name: one.ids for name, one in found.items() if one.ids is not None}
    if with_ids:
        first = next(iter(with_ids))
        for name, ids in with_ids.items():
            if (differs := with_ids[first] != ids).any():
                row = int(differs.argmax())
                order = "the same in another order" if sorted(ids) == sorted(with_ids[first]) else "others"
                raise InputError(
                    f"--{what}: the ids of {paths[name]} are not those of {paths[first]} but {order}, first in row "
                    f"{row}: {ids[row]} and {with_ids[first][row]}"
                )
    if unknown := [str(path) for name, path in paths.items() if name not in with_ids]:
        logger.info("no ids in {}: row i is taken for sample i", ", ".join(unknown))
    models = GivenModels(
        {name: one.values for name, one in found.items()},
        {name: files.content_hash(path) for name, path in paths.items()},
    )
    n = next(iter(lengths.values()))
    if args.num_inputs is not None and args.num_inputs > n:
        raise InputError(f"--num-inputs {args.num_inputs}: the files hold {n} rows")
    ids = next(iter(with_ids.values()), np.arange(n).astype(str))
    labels = _labels(args, found, paths, n)
    digest = hashlib.sha256(repr((ids.tolist(), labels.tolist())).encode()).hexdigest()[:16]
    samples = Samples(labels, digest)
    return models, [ImageSet(args.dataset, samples, torch.arange(args.num_inputs or n))]


def _labels(args: argparse.Namespace, found: Mapping[str, Given], paths: Mapping[str, Path], n: int) -> Tensor:
    """(n,) of the files that have them, which must agree, else of --labels-path; -1 where nobody knows."""
    known = {name: one.labels for name, one in found.items() if one.labels is not None}
    if args.labels_path is not None:
        known[""] = read_labels(args.labels_path, n)
    if not known:
        return torch.full((n,), -1)
    first = next(iter(known))
    for name, labels in known.items():
        if not labels.equal(known[first]):
            raise InputError(f"{paths.get(name, args.labels_path)} has other labels than {paths[first]}")
    return known[first]


def read(path: Path, what: str) -> Given:
    """The array of a file and what lies beside it, checked.

    Raises:
        InputError: damaged, no such array, or not finite real numbers (N, ...) with at least two rows.
    """
    held = _arrays(path, what)
    rest = [name for name in held if name not in BESIDE]
    name = what if what in held else rest[0] if len(rest) == 1 else None
    if name is None:
        there = ", ".join(map(repr, held)) or "nothing"
        raise InputError(f"{path} holds {there}: expected an array {what!r}, or only one besides ids and labels")
    try:
        values = torch.as_tensor(held[name])
        if what == "logits" and values.ndim != 2:
            raise ValueError(f"logits are (N, classes), got shape {tuple(values.shape)}")
        if values.is_complex():
            raise ValueError("complex numbers")
        as_rep(values, convert=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}, {name!r}: {error}") from error
    ids, labels = (held.get(key) for key in BESIDE)
    for key, beside in (("ids", ids), ("labels", labels)):
        if beside is None:
            continue
        kind = np.asarray(beside).dtype.kind
        if np.asarray(beside).shape != (len(values),) or kind not in ("iuU" if key == "ids" else "iu"):
            kinds = "whole numbers or text" if key == "ids" else "classes, whole numbers from 0"
            raise InputError(f"{path}: {key} are {kinds}, one for each of the {len(values)} rows")
    if labels is not None:
        labels = torch.as_tensor(np.asarray(labels).astype(np.int64))
        if labels.min() < 0:
            raise InputError(f"{path}: labels are classes from 0, found {int(labels.min())}")
    return Given(values, None if ids is None else np.asarray(ids).astype(str), labels)


def _arrays(path: Path, what: str) -> dict[str, Any]:
    """Everything in a file, by name; the one array of a file without names is called `what`."""
    if path.suffix == ".npz":
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # a zip file and NumPy's headers: damage surfaces as any of a dozen types
            reason = str(error).partition("\n")[0][:300] or type(error).__name__
            raise InputError(f"{path} is not a readable .npz file: {reason}") from error
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except SafetensorError as error:
            raise InputError(f"{path} is not a readable .safetensors file: {error}") from error
    if path.suffix not in (".npy", ".pt", ".pth"):
        raise InputError(f"{path}: --{what} reads .npy, .npz, .safetensors and .pt")
    held = open_tensor(path, f"file of {what}")
    return dict(held) if isinstance(held, Mapping) else {what: held}
