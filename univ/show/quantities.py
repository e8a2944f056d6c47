"""What the figures show: long table -> similarities, agreement bounds, tests of differences, lists of what is missing.

No drawing here, so that tables and reports use the same numbers as the figures (`univ.show.plots`).
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from univ import results
from univ.data import DATASETS, open_images
from univ.data.indices import read_indices
from univ.eps import eps_value
from univ.errors import InputError
from univ.files import schemas
from univ.inversion.images import SUFFIXES, open_inverted
from univ.measures.cards import CARDS, SHOWN, find_card

REPRESENTATIONAL = ("cka", "proc", "rtd", "jacc")
"""The study's four representational measures, in the order of its figures."""
FUNCTIONAL = ("dis", "jsd")


def studied() -> list[str]:
    """The data sets of the study."""
    return [name for name, dataset in DATASETS.items() if dataset.radii]


def dataset_label(name: str) -> str:
    """A data set's name for people; a name that is not ours stays as it is."""
    return DATASETS[name].label if name in DATASETS else name


def with_similarity(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of measures in SHOWN, with a column `similarity`: the score turned so that larger means more alike."""
    table = table[table["measure"].isin(list(SHOWN))].copy()
    table["similarity"] = np.nan
    for measure, rows in table.groupby("measure"):
        table.loc[rows.index, "similarity"] = SHOWN[measure].similarity(rows["score"])
    return table


def order_datasets(names: Iterable[str]) -> list[str]:
    """Data sets in the order of the study, then the others by name."""
    found = set(names)
    return [name for name in DATASETS if name in found] + sorted(found - set(DATASETS))


def one_k(table: pd.DataFrame, k: int | None = None) -> pd.DataFrame:
    """Keep the neighbour-based scores of a single k, so that a box never pools several.

    Args:
        table: long table with the setting `knn` as a column (`load_long_table(..., settings=["knn"])`).
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
        for kind in inputs:
            lacking: dict[tuple[float, ...], list[str]] = {}
            for measure in measures:
                there = set(found.loc[(found["input"] == kind) & (found["measure"] == measure), "eps"])
                if absent := tuple(eps for eps in expected if eps not in there):
                    lacking.setdefault(absent, []).append(measure)
            for absent, keys in lacking.items():
                lines.append(f"{dataset}, {kind}: {', '.join(keys)} at eps {', '.join(f'{eps:g}' for eps in absent)}")
    return lines


def pooled(table: pd.DataFrame) -> list[str]:
    """Settings whose scores come from several index files (tags): a figure pools them unless one tag is chosen."""
    lines = []
    for (dataset, kind, measure), rows in table.groupby(["dataset", "input", "measure"]):
        tags = sorted(set(rows["exp"]))
        if len(tags) > 1 and rows.groupby("eps")["exp"].nunique().max() > 1:
            lines.append(f"{dataset}, {kind}: {measure} pools the tags {', '.join(tags)}")
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


def all_accuracies(results_dir: Path | str, evaluations: Iterable[Path | str] = ()) -> pd.DataFrame:
    """Accuracies on the compared images; for settings that have none recorded, those of `results.find_evaluations`."""
    recorded = results.load_accuracies(results_dir)
    evaluated = results.load_evaluations(results.find_evaluations(results_dir, evaluations))
    covered = set(zip(recorded["dataset"], recorded["eps"], recorded["input"]))
    new = [setting not in covered for setting in zip(evaluated["dataset"], evaluated["eps"], evaluated["input"])]
    parts = [part for part in (recorded, evaluated[new]) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else recorded


def mean_bounds(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Bounds of agreement, averaged over pairs of models.

    Args:
        accuracies: as `all_accuracies` gives them. On inverted images a pair is the source and another model, both with
            their accuracy on the source's images.

    Returns:
        Columns dataset, eps, input, lower, upper.
    """
    rows = []
    for (dataset, eps, kind, _, _), group in accuracies.groupby(["dataset", "eps", "input", "exp", "source"]):
        of_model = dict(zip(group["model"], group["accuracy"]))
        sources = set(group["source"]) - {""}
        pairs = [(next(iter(sources)), other) for other in of_model] if sources else itertools.combinations(of_model, 2)
        for first, second in pairs:
            if first != second and first in of_model:
                bounds = agreement_bounds(of_model[first], of_model[second], int(group["num_classes"].iloc[0]))
                rows.append((dataset, eps, kind, *bounds))
    table = pd.DataFrame(rows, columns=["dataset", "eps", "input", "lower", "upper"])
    return table.groupby(["dataset", "eps", "input"], as_index=False).mean()


@dataclass(frozen=True)
class Difference:
    """Mean difference over pairs of models, and how surprising it is.

    Attributes:
        mean: of the pairs' differences.
        p: two-sided p-value; nan with fewer than three models.
        models: number of models.
        smallest_p: the smallest p-value that so many models can give.
    """

    mean: float
    p: float
    models: int
    smallest_p: float


EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated, more are drawn


def model_level_test(differences: Mapping[tuple[str, str], float], *, draws: int = 10_000, seed: int = 0) -> Difference:
    """Permutation test of "the mean difference over pairs is zero" in which the models are the units.

    Pairs that share a model are not independent: with m models, m(m-1)/2 differences hold about m independent pieces
    of information. So each difference is split by least squares into one share per model, d_ij = u_i + u_j + rest, and
    the labels of the two groups (agree and disagree, say) are swapped model by model: u_i changes its sign. The mean
    difference of all 2^m swaps is compared with the one seen. Assumed is that under the null the shares u_i are
    symmetric around zero, as they are if swapping a model's labels changes nothing; models that are merely exchangeable
    with each other are not enough (skewed shares: 10 to 15 % false positives at 5 %).

    Against it, a permutation of single scores that counts each pair twice calls 30 to 50 % of purely random model
    effects significant at 5 % (tests/test_figure_data.py).

    Args:
        differences: unordered pair of models -> difference; nan values (a group was too small) are left out.
        draws, seed: with more than 14 models the swaps are drawn at random, and the p-value counts the one seen.
    """
    pairs = {pair: value for pair, value in differences.items() if not math.isnan(value)}
    models = sorted({model for pair in pairs for model in pair})
    mean = float(np.mean(list(pairs.values()))) if pairs else math.nan
    if len(models) < 3:
        return Difference(mean, math.nan, len(models), math.nan)
    design = np.array([[float(model in pair) for model in models] for pair in pairs])
    shares = np.linalg.lstsq(design, np.array(list(pairs.values())), rcond=None)[0]
    weights = design.mean(axis=0) * shares  # the mean difference is their sum
    if len(models) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((1, -1), repeat=len(models))))
        smallest = 2 / len(signs)
    else:
        signs = np.random.default_rng(seed).choice((1, -1), size=(draws, len(models)))
        signs = np.concatenate([np.ones((1, len(models))), signs])
        smallest = 1 / len(signs)
    swapped = np.abs(signs @ weights)
    p = float((swapped >= abs(weights.sum()) * (1 - 1e-9)).mean())
    return Difference(mean, p, len(models), smallest)


def subgroup_difference(subgroups: pd.DataFrame) -> Difference:
    """Similarity where two models agree minus where they differ, tested at the level of models.

    Args:
        subgroups: rows of one metric, k, eps and data set with the columns model1, model2, pred_type and similarity;
            both orders of a pair, and repetitions, are averaged.
    """
    pair = [tuple(sorted(models)) for models in zip(subgroups["model1"], subgroups["model2"])]
    scores = subgroups.assign(pair=pair).pivot_table(index="pair", columns="pred_type", values="similarity")
    if not {"agree", "disagree"} <= set(scores):
        return Difference(math.nan, math.nan, 0, math.nan)
    return model_level_test((scores["agree"] - scores["disagree"]).to_dict())


def subgroup_rows(subgroups: pd.DataFrame, metric: str, k: int | None = None) -> pd.DataFrame:
    """The rows of one metric, for neighbour-based ones at a fixed k, with the column `similarity`; scores that could
    not be computed are left out."""
    rows = subgroups[(subgroups["metric"] == metric) & subgroups["score"].notna()]
    if find_card(metric).neighbors:
        rows = rows[(rows["k"] == k) & rows["perc_k"].isna()]
    return rows.assign(similarity=SHOWN[metric].similarity(rows["score"]))


def classifier_and_probe_agreement(table: pd.DataFrame, probes: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Agreement of pairs of classifiers and of pairs of probes on one data set, labelled by group.

    Args:
        table: long table; its `dis` on regular images gives the pretrained classifiers, at eps 0 and the largest eps.
            Only the probed architectures count, if all of them are in the table.
        probes: as `results.load_probe_agreement` gives them; rows whose data set is unknown count for any.

    Returns:
        Columns group (label for the figure, in order), pair, agreement.
    """
    probed = probes[probes["dataset"].isin([dataset, ""])]
    archs = set(probed["arch_1"]) | set(probed["arch_2"])
    rows = table[(table["measure"] == "dis") & (table["input"] == "standard") & (table["dataset"] == dataset)]
    if archs and archs <= set(rows["model1"]) | set(rows["model2"]):
        rows = rows[rows["model1"].isin(archs) & rows["model2"].isin(archs)]
    parts = []
    robust = max(rows["eps"], default=math.nan)
    for eps in dict.fromkeys((0.0, robust)):
        group = rows[rows["eps"] == eps]
        pairs = [f"{a} / {b}" for a, b in zip(group["model1"], group["model2"])]
        name = f"classifiers\neps {eps:g}"
        parts.append(pd.DataFrame({"group": name, "pair": pairs, "agreement": 1 - group["score"].to_numpy()}))
    same = probed["arch_1"] == probed["arch_2"]
    for eps in sorted(set(probed["eps"].dropna())) or [math.nan]:
        of_eps = (probed["eps"] == eps) if not math.isnan(eps) else probed["eps"].isna()
        place = f"eps {eps:g}" if not math.isnan(eps) else "frozen"
        for which, text in ((~same, "probes on {}\nrepresentations"), (same, "probes on one\n{} representation")):
            group = probed[of_eps & which]
            pairs = [f"{a} / {b}" for a, b in zip(group["probe_1"], group["probe_2"])]
            part = {"group": text.format(place), "pair": pairs, "agreement": group["agreement"].to_numpy()}
            parts.append(pd.DataFrame(part))
    return pd.concat([part for part in parts if len(part)] or [pd.DataFrame(columns=["group", "pair", "agreement"])])


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
    target_indices: Path | None = None,
    seed_indices: Path | None = None,
    data_path: Path | None = None,
) -> Inversions:
    """Seed, target and inverted images of all models in a folder, for a few targets of different classes.

    Args:
        data_dir: the folder of the data, where images and inverted images have their usual places.
        folder: holds `<model>_<eps>.pt` (or .npy) and the `.csv` inversion.py writes beside each, which names the
            images; where there is none, as in the published folders, two index files do. Default: the usual place.
        rows: number of targets.
        eps: radii to show; default: 0 and the largest in the folder.
        target_indices, seed_indices: the index files the inversions were made with; default: those that inversion.py
            puts into the folder.
        data_path: the images, where they are not at their usual place.
    """
    known = DATASETS[dataset]
    folder = Path(data_dir) / dataset / "inverted" if folder is None else Path(folder)
    images_path = Path(data_dir) / known.default_path.relative_to("data") if known.default_path else None
    places = {"data_path": data_path or images_path}
    if known.labels_path is not None:
        places["labels_path"] = Path(data_dir) / known.labels_path.relative_to("data")
    nothing, missing = torch.empty(0, 3, 1, 1), []
    index_files = target_indices or folder / "target_indices.csv", seed_indices or folder / "seed_indices.csv"
    paths = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = _INVERTED_NAME.fullmatch(path.stem)
        if path.suffix in SUFFIXES and name is not None:
            paths[name["model"], eps_value(name["eps"])] = path
    found = {radius for _, radius in paths}
    shown = {0.0, max(found, default=0.0)} if eps is None else set(eps)
    pairs: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}
    for key, path in paths.items():
        if key[1] in shown:
            try:
                pairs[key] = _seeds_and_targets(path, *index_files)
            except (FileNotFoundError, InputError) as error:
                missing.append(str(error))
    for model in dict.fromkeys(name for name, _ in paths):
        missing += [f"{model} at eps {radius:g}" for radius in sorted(shown) if (model, radius) not in paths]
    if not pairs:
        return Inversions(nothing, nothing, {}, [*missing, f"no inverted images that can be shown in {folder}"])
    opened = {}
    for key, (targets, seeds) in list(pairs.items()):
        try:
            opened[key] = open_inverted(paths[key])
            if not len(targets) == len(seeds) == len(opened[key]):
                raise InputError(f"{paths[key].name} holds {len(opened[key])} images for {len(targets)} targets")
        except InputError as error:
            missing.append(str(error))
            del pairs[key]
    if not pairs:
        return Inversions(nothing, nothing, {}, missing)
    first, (targets, seeds) = next(iter(pairs.items()))
    same = [key for key, pair in pairs.items() if torch.equal(pair[0], targets) and torch.equal(pair[1], seeds)]
    missing += [f"{paths[key].name}: other targets or seeds than {paths[first].name}" for key in pairs.keys() - same]
    try:
        images = open_images(dataset, **places)
    except (FileNotFoundError, InputError) as error:
        return Inversions(nothing, nothing, {}, [*missing, str(error)])
    if max(targets.max(), seeds.max()) >= len(images):
        missing.append(f"{paths[first].name}: a target or seed lies past the {len(images):,} images")
        return Inversions(nothing, nothing, {}, missing)
    chosen = _of_different_classes(images.labels[targets], rows)
    size = opened[first].pixels.shape[-1]
    if size != images[0][0].shape[-1]:
        images = open_images(dataset, **places, image_size=size)
    inverted = {key: opened[key].floats(chosen).clone() for key in same}
    return Inversions(
        torch.stack([images[int(i)][0] for i in seeds[chosen]]),
        torch.stack([images[int(i)][0] for i in targets[chosen]]),
        inverted,
        missing,
    )


def _seeds_and_targets(path: Path, target_indices: Path, seed_indices: Path) -> tuple[Tensor, Tensor]:
    """Target and seed indices of a file of inverted images, (n,) each: from the CSV beside it, else the index files."""
    beside = path.with_suffix(".csv")
    if beside.is_file():
        table = schemas.read_table(beside, schemas.ReportRow, columns := ("target_index", "seed_index"))
        targets, seeds = (torch.tensor(table[name].to_list(), dtype=torch.int64) for name in table[list(columns)])
        return targets, seeds
    if not (target_indices.is_file() and seed_indices.is_file()):
        raise FileNotFoundError(f"{path.name}: seeds unknown, there is no {beside.name} and no {seed_indices.name}")
    return read_indices(target_indices), read_indices(seed_indices)


def _of_different_classes(labels: Tensor, rows: int) -> Tensor:
    """Positions of the first image of each class, then of the others, `rows` in all, ascending."""
    first = {int(label): position for position, label in reversed(list(enumerate(labels)))}
    positions = sorted(first.values())
    positions += sorted(set(range(len(labels))) - set(positions))
    return torch.tensor(sorted(positions[:rows]))
