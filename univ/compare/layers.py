"""All layers of one or several models beside each other: models, images, nodes -> a long table of scores.

Minibatch CKA looks at the images once and keeps nothing of the representations; exactly, any measure compares
representations that the cache holds. A row is a pair of layers: model1, layer1, model2, layer2, measure, score, the
number of images, and of how many of them a batch had (all, where the score is exact).
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ import files
from univ.compare.drivers import pairwise
from univ.compare.inputs import ImageSet, Models
from univ.compare.scoring import AnyMeasure
from univ.data.loaders import Batches, stream
from univ.errors import InputError
from univ.files.tensors import TensorFile, write_tensors
from univ.measures.minibatch import MinibatchCKA, batch_gram
from univ.models import file_stem
from univ.models.precision import arithmetic
from univ.reps.nodes import ALL, Reader
from univ.results import made

COLUMNS = ["model1", "layer1", "model2", "layer2", "measure", "score", "n", "batch"]
LEAST_BATCH = 8  # no batch then has fewer than 4 images, whatever the number of images
SAVE_EVERY = 30  # seconds between two points from which a killed run can continue
Layers = Mapping[str, Sequence[str]]  # model -> nodes


def batch_sizes(n: int, most: int) -> list[int]:
    """Batches of at most `most` images, as equal as possible: each counts the same in the average."""
    number = -(-n // most)
    return [n // number + (i < n % number) for i in range(number)]


@torch.no_grad()
def minibatch_cka(
    models: Models, images: ImageSet, layers: Layers, *, pool: str, batch: int, seed: int, unfinished: Path
) -> tuple[Tensor, int]:
    """CKA of every two layers (of all models, in the order of `layers`), (L, L), and the images of the largest batch.

    Args:
        pool: see `nodes.Reader`.
        batch: images at a time, at most.
        seed: of which images come together in a batch.
        unfinished: where the sums are kept while it runs; a killed run with the same inputs continues from there.

    Raises:
        InputError: fewer than 4 images; a layer holds NaN or infinity.
    """
    n = len(images)
    if n < 4:
        raise InputError(f"CKA needs at least 4 images, there are {n}")
    sizes = batch_sizes(n, batch)
    order = torch.randperm(n, generator=stream("layers", seed))
    # within a batch in the order of the file
    chosen = torch.cat([images.chosen[part.sort().values] for part in order.split(sizes)])
    settings = {"layers": layers, "pool": pool, "batch": batch, "seed": seed, "images": str(images.identity)}
    settings |= {"models": models.hashes, "precision": models.precision}
    sums = _read_sums(unfinished, settings)
    if sums.batches:
        logger.info("continuing with batch {} of {}", sums.batches + 1, len(sizes))
    done = sum(sizes[: sums.batches])
    batches = Batches(
        images.images, sizes[sums.batches :], device=models.device, workers=models.workers, indices=chosen[done:]
    )
    saved = time.monotonic()
    with tqdm(total=n, initial=done, desc="layers", unit="img", disable=models.quiet) as bar:
        for pixels, _ in batches:
            with arithmetic(models.precision, models.device):
                grams = [gram for name in layers for gram in _grams(models, name, layers[name], pool, pixels)]
            sums.update(torch.stack(grams))
            bar.update(len(pixels))
            if time.monotonic() - saved > SAVE_EVERY:
                _write_sums(unfinished, settings, sums)
                saved = time.monotonic()
    return sums.cka(), max(sizes)


def _grams(models: Models, name: str, nodes: Sequence[str], pool: str, pixels: Tensor) -> Iterator[Tensor]:
    def reduce(node: str, rep: Tensor) -> Tensor:
        try:
            return batch_gram(rep)
        except ValueError as error:
            raise InputError(f"{name}, node {node}: {error}") from error

    with Reader(models.network(name), nodes, pool, reduce) as reader:
        yield from reader(pixels).values()


def _read_sums(path: Path, settings: Mapping[str, Any]) -> MinibatchCKA:
    """The sums of a killed run with the same settings; none where there is no such."""
    if path.is_file():
        try:
            file = TensorFile(path)
            if json.loads(file.about("settings")) == made.plain(settings):
                return MinibatchCKA(file["sums"].clone(), int(file.about("batches")))
        except InputError as error:
            logger.warning("starting anew: {}", error)
    return MinibatchCKA()


def _write_sums(path: Path, settings: Mapping[str, Any], sums: MinibatchCKA) -> None:
    about = {"settings": json.dumps(made.plain(settings)), "batches": str(sums.batches)}
    write_tensors(path, {"sums": sums.sums}, about)


def exact_scores(
    models: Models, images: ImageSet, layers: Layers, measures: Sequence[AnyMeasure], *, pool: str
) -> dict[str, pd.DataFrame | str]:
    """Measure -> scores of every two layers, in the order of `layers`, or why there are none; through the cache."""
    reps = {}
    for name, nodes in layers.items():
        readings = models.readings(name, images, nodes, pool)
        reps |= {f"{name} {node}": readings[node].reps for node in nodes}
    for label, rep in reps.items():
        if rep.ndim != 2:
            raise InputError(f"{label} has the shape {tuple(rep.shape)}: --pool flatten or mean give rows")
    done = pairwise(reps, measures, device=models.device, quiet=models.quiet)
    for comparison in done.values():
        for note in comparison.notes:
            logger.warning("{}: nan, {}", comparison.name, note)
    return {
        name: comparison.scores if comparison.failure is None else comparison.failure
        for name, comparison in done.items()
    }


def table(layers: Layers, scores: np.ndarray, measure: str, n: int, batch: int) -> pd.DataFrame:
    """Scores (L, L) as a long table: every layer of a model by every layer of itself and of those after it."""
    labels = [(name, node) for name, nodes in layers.items() for node in nodes]
    place = {name: number for number, name in enumerate(layers)}
    rows = [
        (*first, *second, measure, float(scores[i, j]), n, batch)
        for (i, first), (j, second) in itertools.product(enumerate(labels), repeat=2)
        if place[first[0]] <= place[second[0]]
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def result_path(args: argparse.Namespace, models: Models, measure: str) -> Path:
    """`<results>/layers/<data set>/<measure>[_exact]_<models>[_<nodes>][_<pool>]_<eps>_<exp>.csv`.

    Nodes and pooling stand in the name where they are not all nodes, flattened; a + there is a * of the command line.
    """
    nodes = "" if args.node == [ALL] else "-".join(args.node).replace("*", "+")
    pool = "" if args.pool == "flatten" else args.pool
    parts = [measure, "exact" * args.exact, *map(file_stem, models.sources), nodes, pool, args.eps, f"{args.exp}.csv"]
    folder = args.results / "layers" / files.file_name(args.dataset, "--dataset")
    return folder / files.file_name("_".join(filter(None, parts)), "result")
