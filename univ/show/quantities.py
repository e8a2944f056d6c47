"""What the figures show: long table -> similarities, agreement bounds, lists of what is missing, inverted images.

No drawing here, so that tables and reports use the same numbers as the figures (`univ.show.plots`).
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from univ.data import DATASETS, find_dataset, is_folder, open_images
from univ.data.images import TensorImages
from univ.data.indices import read_indices
from univ.eps import eps_value
from univ.errors import InputError
from univ.inversion.images import SUFFIXES, open_inverted
from univ.inversion.record import read_column, read_origin
from univ.measures.cards import CARDS, SHOWN, find_card, in_study
from univ.show import evidence

REPRESENTATIONAL, FUNCTIONAL = in_study("reps"), in_study("outputs")
"""The measures of the study's figures, in their order."""


def studied() -> list[str]:
    return [name for name, dataset in DATASETS.items() if dataset.radii]


def dataset_label(name: str) -> str:
    """A data set's name for people; a name that is not ours stays as it is."""
    return DATASETS[name].label if name in DATASETS else name


def with_similarity(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of measures in SHOWN, with a column `similarity`: the score turned so that larger means more alike."""
    table = table[table["measure"].isin(list(SHOWN))].copy()
    table["similarity"] = np.nan
    for measure in set(table["measure"]):
        rows = table["measure"] == measure
        table.loc[rows, "similarity"] = SHOWN[measure].similarity(table.loc[rows, "score"].to_numpy())
    return table


class Trend(NamedTuple):
    """Change of similarity over eps, the ends of its confidence interval and its two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def eps_trend(table: pd.DataFrame, *, level: float = evidence.LEVEL) -> Trend:
    """Whether similarity rises over eps, with architectures as units: see `evidence`.

    A line is fitted to each pair of models; the mean is its change from the smallest to the largest eps, over pairs of
    different architectures. Seeds (`resnet18@0`, `resnet18@1`) of one architecture count together. The interval has
    been simulated to hold its level from 4 architectures on; 3 are the least there can be.

    Args:
        table: columns model1, model2, eps, and similarity or score, of one measure, data set and kind of images, as
            `results.load_long_table` gives them. Scores are turned so that larger is more alike.

    Returns:
        In units of the similarity. low, high and p are nan with fewer than three architectures, all are nan where no
        pair has two eps.

    Raises:
        InputError: the table pools several measures, data sets, kinds of images, tags or k.
    """
    estimate = rise_over_eps(table)
    return Trend(estimate.mean, *estimate.interval(level), estimate.p)


def eps_equivalence(table: pd.DataFrame, margin: float = evidence.MARGIN) -> float:
    """p-value of "over eps the similarity changes by more than margin": below 0.05 it is equivalent within -+margin.

    Two one-sided tests on the estimate of `eps_trend`.
    """
    return rise_over_eps(table).equivalence_p(margin)


def rise_over_eps(table: pd.DataFrame) -> evidence.Estimate:
    """The estimate behind `eps_trend`."""
    for name in ("measure", "dataset", "input", "exp", "knn"):
        if name in table and (several := sorted(set(table[name].dropna()))) and len(several) > 1:
            raise InputError(f"a rise over eps is of one {name}, got {', '.join(map(str, several))}: choose one")
    if "similarity" not in table:
        known = "measure" in table and table["measure"].isin(list(SHOWN)).all()
        table = with_similarity(table) if known else table.assign(similarity=table["score"])
    table = table[~within_architecture(table)]
    return evidence.rise(zip(zip(table["model1"], table["model2"]), table["eps"], table["similarity"]))


ERRORS = 20
"""Below so many errors of a model, what is measured on errors alone is noise: intervals cover 28 to 56 %."""
OF_ERRORS = ("norm", "error_consistency")


def too_few_errors(table: pd.DataFrame, accuracies: pd.DataFrame | None) -> np.ndarray:
    """Of each row of a long table, whether its score is one of errors, and one of the models made fewer than ERRORS.

    Args:
        table: with the column `images`, how many were compared; nan where that is not known, and all are kept.
        accuracies: on the compared images; a model that is not in it counts as having enough.
    """
    few = np.zeros(len(table), dtype=bool)
    if accuracies is None or "images" not in table or not table["measure"].isin(OF_ERRORS).any():
        return few
    about = ["dataset", "input", "eps", "exp"]
    columns = accuracies[[*about, "source", "model", "accuracy"]]
    accuracy = {tuple(key): share for *key, share in columns.itertuples(index=False)}
    columns = table[["measure", "images", *about, "model1", "model2"]]
    for row, (measure, images, *setting, first, second) in enumerate(columns.itertuples(index=False)):
        source = first if setting[1] == "inverted" else ""
        errors = [images * (1 - accuracy.get((*setting, source, model), math.nan)) for model in (first, second)]
        few[row] = measure in OF_ERRORS and any(round(count) < ERRORS for count in errors if not math.isnan(count))
    return few


SIZE_FREE = ("cka", "cos", "rsa")


def depends_on_size(measure: str) -> bool:
    """Whether the expectation of a measure of representations depends on the number of images, of neighbours or on the
    widths, so that scores are compared at equal ones only; CKA is debiased, and so does not."""
    return find_card(measure).of == "reps" and measure not in SIZE_FREE


def ends_at_one(measure: str) -> bool:
    """Whether the similarity of identical models is 1, so that a margin in shares makes sense."""
    card = find_card(measure)
    return card.self_score is not None and card.similarity(card.self_score) == 1


def within_architecture(table: pd.DataFrame) -> np.ndarray:
    """Of each row, whether model1 and model2 are trainings of one architecture that differ in their seeds."""
    first, second = (table[name].map(evidence.architecture).to_numpy() for name in ("model1", "model2"))
    return np.asarray(first == second, dtype=bool)


def order_datasets(names: Iterable[str]) -> list[str]:
    """Data sets in the order of the study, then the others by name."""
    found = set(names)
    return [name for name in DATASETS if name in found] + sorted(found - set(DATASETS))


def one_k(table: pd.DataFrame, k: int | None = None) -> pd.DataFrame:
    """Keep the neighbour-based scores of a single k, so that a box never pools several.

    Args:
        table: with the setting `knn` as a column.
        k: number of neighbours; where there are none of this k (or it is None), the smallest k there is. Rows whose k
            is not known, as in published CSVs, count as any k.
    """
    neighbors = table["measure"].isin([key for key, card in CARDS.items() if card.neighbors])
    known = table.loc[neighbors, "knn"].dropna()
    if known.empty:
        return table
    chosen = k if k in set(known) else known.min()
    return table[~neighbors | table["knn"].isna() | (table["knn"] == chosen)]


def missing(
    table: pd.DataFrame, measures: Collection[str], inputs: Collection[str] = ("standard", "inverted")
) -> list[str]:
    """What a figure of these measures lacks, one line per data set and input; empty if nothing.

    The study's data sets are expected at the study's radii, any other at the radii found for it.
    """
    lines = []
    table = table[table["measure"].isin(list(measures)) & table["input"].isin(list(inputs))]
    for dataset in order_datasets([*studied(), *table["dataset"]]):
        found = table[table["dataset"] == dataset]
        if found.empty:
            lines.append(f"{dataset}: no results")
            continue
        radii = DATASETS[dataset].radii if dataset in DATASETS else ()
        expected = radii or tuple(sorted(found["eps"].unique()))
        for images in inputs:
            lacking: dict[tuple[float, ...], list[str]] = {}
            for measure in measures:
                there = set(found.loc[(found["input"] == images) & (found["measure"] == measure), "eps"])
                if absent := tuple(eps for eps in expected if eps not in there):
                    lacking.setdefault(absent, []).append(measure)
            for absent, keys in lacking.items():
                lines.append(f"{dataset}, {images}: {', '.join(keys)} at eps {', '.join(f'{eps:g}' for eps in absent)}")
    return lines


def pooled(table: pd.DataFrame) -> list[str]:
    """Settings whose scores come from several index files (tags): a figure pools them unless one tag is chosen."""
    lines = []
    for (dataset, images, measure), rows in table.groupby(["dataset", "input", "measure"]):
        tags = sorted(set(rows["exp"]))
        if len(tags) > 1 and rows.groupby("eps")["exp"].nunique().max() > 1:
            lines.append(f"{dataset}, {images}: {measure} pools the tags {', '.join(tags)}")
    return lines


def agreement_bounds(a: float, b: float, num_classes: int) -> tuple[float, float]:
    """What two classifiers' accuracies say about the share of images on which they predict the same class.

    Args:
        a, b: accuracies, shares in [0, 1], in any order.
        num_classes: C > 1.

    Returns:
        (lower, upper). Lower: agreement of classifiers whose errors are independent, each error a uniform draw among
        the wrong classes. Upper: agreement of a classifier with a copy of itself that is worsened, by replacing
        predictions with other classes at random, to the lower accuracy. Upper is nan if the better one does not beat
        chance (b <= 1/C). They are expectations, not limits: a pair can lie outside.

    Source: Fort, Hu and Lakshminarayanan 2020 (Deep Ensembles: A Loss Landscape Perspective), who give disagreement.
    """
    a, b = sorted((a, b))
    independent = (1 - b) * a + (1 - a) * b + (1 - b) * (1 - a) * (num_classes - 2) / (num_classes - 1)
    if num_classes * b <= 1:
        return 1 - independent, math.nan
    perturbed = (num_classes - 1) * (b - a) / (num_classes * b - 1)
    return 1 - independent, 1 - perturbed


def mean_bounds(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Bounds of agreement, averaged over pairs of models.

    Args:
        accuracies: as `results.complete_accuracies` gives them. On inverted images a pair is the source and another
            model, both with their accuracy on the source's images.

    Returns:
        Columns dataset, eps, input, lower, upper.
    """
    setting, rows = ["dataset", "eps", "input"], []
    for (*about, _, source), group in accuracies.groupby([*setting, "exp", "source"]):
        of_model, num_classes = dict(zip(group["model"], group["accuracy"])), int(group["num_classes"].iloc[0])
        for a, b in itertools.combinations(of_model, 2):
            if not source or source in (a, b):
                rows.append((*about, *agreement_bounds(of_model[a], of_model[b], num_classes)))
    table = pd.DataFrame(rows, columns=[*setting, "lower", "upper"])
    return table.groupby(setting, as_index=False).mean()


def classifier_and_probe_agreement(table: pd.DataFrame, probes: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Agreement of pairs of classifiers and of pairs of probes on one data set, labelled by group.

    Args:
        table: long table; its `dis` on regular images gives the pretrained classifiers, at eps 0 and the largest eps.
            Only the probed architectures count, if all of them are in the table.
        probes: rows whose data set is unknown count for any.

    Returns:
        Columns group (label for the figure, in order), pair, agreement.
    """
    probed = probes[probes["dataset"].isin([dataset, ""])]
    archs = set(probed["arch_1"]) | set(probed["arch_2"])
    rows = table[(table["measure"] == "dis") & (table["input"] == "standard") & (table["dataset"] == dataset)]
    if archs and archs <= set(rows["model1"]) | set(rows["model2"]):
        rows = rows[rows["model1"].isin(archs) & rows["model2"].isin(archs)]
    rows = rows.assign(pair=rows["model1"] + " / " + rows["model2"], agreement=1 - rows["score"])
    radii = dict.fromkeys((0.0, max(rows["eps"], default=math.nan)))
    groups = [(f"classifiers\neps {eps:g}", rows[rows["eps"] == eps]) for eps in radii]
    probed = probed.assign(pair=probed["probe_1"] + " / " + probed["probe_2"])
    for eps, of_eps in probed.groupby("eps", dropna=probed["eps"].notna().any()):  # all unknown: a group of their own
        which = "frozen" if math.isnan(eps) else f"eps {eps:g}"
        same = of_eps["arch_1"] == of_eps["arch_2"]
        groups.append((f"probes on {which}\nrepresentations", of_eps[~same]))
        groups.append((f"probes on one\n{which} representation", of_eps[same]))
    parts = [part.assign(group=name)[["group", "pair", "agreement"]] for name, part in groups if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["group", "pair", "agreement"])


def agreements(table: pd.DataFrame, probes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Data set -> its `classifier_and_probe_agreement`, of those that probes name (all, where they name none)."""
    named = [name for name in order_datasets(probes["dataset"]) if name]
    datasets = named or order_datasets(table["dataset"]) if len(probes) else []
    found = {name: classifier_and_probe_agreement(table, probes, name) for name in datasets}
    return {name: rows for name, rows in found.items() if len(rows)}


# --- inverted images ------------------------------------------------------------------------------------------------


def inverted_datasets(data_dir: Path) -> list[str]:
    """What results are filed under: the built-in data sets, then whatever else has a folder of inverted images."""
    others = {path.parent.name for path in data_dir.glob("*/inverted")}
    return order_datasets([*DATASETS, *others])


@dataclass(frozen=True)
class Inversions:
    """Some rows of a grid of inverted images.

    Attributes:
        seeds, targets: (rows, 3, H, W) float32 in [0, 1].
        inverted: (model, eps) -> (rows, 3, H, W).
        missing: what could not be shown, one line each.
    """

    seeds: Tensor
    targets: Tensor
    inverted: dict[tuple[str, float], Tensor]
    missing: list[str]


_INVERTED_NAME = re.compile(r"(?P<model>.+)_(?P<eps>eps\d+)")


def load_inversions(
    dataset: str,
    data_dir: Path | str = Path("data"),
    *,
    folder: Path | str | None = None,
    rows: int = 6,
    eps: Collection[float] | None = None,
    data_path: Path | None = None,
) -> Inversions:
    """Seed, target and inverted images of all models in a folder, for a few targets of different classes.

    Args:
        data_dir: the folder of the data, where images and inverted images have their usual places.
        folder: holds `<model>_<eps>.pt` (or .npy), and beside each the `.csv` that names its images or, as published,
            target_indices.csv and seed_indices.csv. Default: the usual place.
        rows: number of targets.
        eps: radii to show; default: 0 and the largest in the folder.
        data_path: the images, where they are not at their usual place.
    """
    folder = Path(data_dir) / dataset / "inverted" if folder is None else Path(folder)
    paths = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = _INVERTED_NAME.fullmatch(path.stem)
        if path.suffix in SUFFIXES and name is not None:
            paths[name["model"], eps_value(name["eps"])] = path
    paths = dict(sorted(paths.items()))  # resnet10 before resnet10@1
    shown = {0.0, max((radius for _, radius in paths), default=0.0)} if eps is None else set(eps)
    models = dict.fromkeys(model for model, _ in paths)
    wanted = itertools.product(models, sorted(shown))
    missing = [f"{model} at eps {radius:g}" for model, radius in wanted if (model, radius) not in paths]
    opened: dict[tuple[str, float], tuple[Tensor, Tensor, TensorImages]] = {}
    for key, path in paths.items():
        if key[1] in shown:
            try:
                opened[key] = _open(path)
            except (FileNotFoundError, InputError) as error:
                missing.append(str(error))
    try:
        if not opened:
            raise InputError(f"no inverted images that can be shown in {folder}")
        first, (targets, seeds, inverted) = next(iter(opened.items()))
        same = [key for key, (t, s, _) in opened.items() if torch.equal(t, targets) and torch.equal(s, seeds)]
        others = [paths[key].name for key in opened if key not in same]
        missing += [f"{name}: other targets or seeds than {paths[first].name}" for name in others]
        source, places = _images_of(dataset, Path(data_dir), paths[first])
        places |= {"data_path": data_path} if data_path else {}
        images = open_images(source, image_size=inverted.pixels.shape[-1], **places)
        if max(targets.max(), seeds.max()) >= len(images):
            raise InputError(f"{paths[first].name}: a target or seed lies past the {len(images):,} images")
    except (FileNotFoundError, InputError) as error:
        return Inversions(torch.empty(0, 3, 1, 1), torch.empty(0, 3, 1, 1), {}, [*missing, str(error)])
    chosen = _of_different_classes(images.labels[targets], rows)
    return Inversions(
        torch.stack([images[int(i)][0] for i in seeds[chosen]]),
        torch.stack([images[int(i)][0] for i in targets[chosen]]),
        {key: opened[key][2].floats(chosen).clone() for key in same},
        missing,
    )


def _images_of(dataset: str, data_dir: Path, inverted: Path) -> tuple[str, dict[str, Path]]:
    """The data set's name for `open_images`, and the paths of its images and labels where they are not its own.

    A folder's path is in the JSON beside its inverted images.
    """
    if dataset not in DATASETS:
        arguments = read_origin(inverted).get("arguments", {})
        source = arguments.get("dataset")
        if not is_folder(source):
            raise InputError(f"{inverted.name}: no {inverted.stem}.json says which images it was made of")
        return source, {name: Path(arguments[name]) for name in ("data_path", "labels_path") if arguments.get(name)}
    known = find_dataset(dataset)
    usual = {"data_path": known.default_path, "labels_path": known.labels_path}
    return dataset, {name: data_dir / path.relative_to("data") for name, path in usual.items() if path is not None}


def _open(path: Path) -> tuple[Tensor, Tensor, TensorImages]:
    """Target and seed indices (n,) of inverted images, by the CSV beside them, else the index files; the images."""
    beside = path.with_suffix(".csv")
    index_files = [path.with_name(f"{what}_indices.csv") for what in ("target", "seed")]
    if beside.is_file():
        targets, seeds = (read_column(beside, name) for name in ("target_index", "seed_index"))
    elif all(file.is_file() for file in index_files):
        targets, seeds = map(read_indices, index_files)
    else:
        raise FileNotFoundError(f"{path.name}: seeds unknown, there is no {beside.name} and no {index_files[1].name}")
    images = open_inverted(path)
    if not len(targets) == len(seeds) == len(images):
        raise InputError(f"{path.name} holds {len(images)} images for {len(targets)} targets")
    return targets, seeds, images


def _of_different_classes(labels: Tensor, rows: int) -> Tensor:
    """Positions of the first image of each class, then of the others, `rows` in all, ascending."""
    first = np.sort(np.unique(labels, return_index=True)[1])
    others = np.setdiff1d(np.arange(len(labels)), first)
    return torch.from_numpy(np.sort(np.concatenate([first, others])[:rows]))
