"""Models beside models: heat maps of their similarities, ordered by similarity, and maps of the models.

Long table in, figure out, or None where there is nothing to draw.
"""

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from scipy.cluster import hierarchy
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import squareform

from univ.measures.cards import find_card
from univ.show import quantities
from univ.show.style import INPUT_LABELS, STYLE, WIDTH, new_figure, shade, shown_name

MOST_NUMBERED = 16  # models up to which the cells of a heat map hold their scores
MARKERS = "os^vD<>PX*pdh8"


def similarity_matrix(rows: pd.DataFrame, *, directed: bool) -> pd.DataFrame:
    """Mean similarity of every pair of models: model1 x model2, nan where there is none and on the diagonal.

    Args:
        rows: columns model1, model2, similarity.
        directed: (a, b) and (b, a) are different comparisons; else a pair counts for both.
    """
    models = list(dict.fromkeys([*rows["model1"], *rows["model2"]]))
    table = rows.pivot_table(index="model1", columns="model2", values="similarity", dropna=False)
    table = table.reindex(index=models, columns=models)
    return table if directed else table.combine_first(table.T).loc[models, models]


def distances(matrix: pd.DataFrame, best: float | None) -> np.ndarray:
    """(n, n) how far a model's similarity lies below `best`, that of identical models (None: the largest there is).

    Both directions are averaged; a pair without a score is as far apart as the farthest; the diagonal is 0.
    """
    values = matrix.to_numpy(dtype=float, copy=True)
    np.fill_diagonal(values, np.nan)
    both = np.stack([values, values.T])
    known = np.isfinite(both).any(axis=0)
    mean = np.where(known, np.nansum(both, axis=0) / np.maximum(np.isfinite(both).sum(axis=0), 1), np.nan)
    if not known.any():
        return np.zeros_like(values)
    gaps = np.clip((np.nanmax(mean) if best is None else best) - mean, 0, None)
    gaps = np.where(known, gaps, np.nanmax(gaps))
    np.fill_diagonal(gaps, 0)
    return gaps


def order_by_similarity(gaps: np.ndarray) -> list[int]:
    """An order of the models in which neighbours are alike.

    The leaves of an average-linkage tree, turned so that the sum of the distances of neighbours is least (Bar-Joseph,
    Gifford and Jaakkola, 2001).
    """
    if len(gaps) < 3:
        return list(range(len(gaps)))
    condensed = squareform(gaps, checks=False)
    return hierarchy.leaves_list(hierarchy.linkage(condensed, "average", optimal_ordering=True)).tolist()


def positions(gaps: np.ndarray) -> tuple[np.ndarray, float]:
    """(n, 2) places in the plane whose distances are those of the models, as far as a plane can; and the stress.

    Metric multidimensional scaling (SMACOF) from the classical solution, so that there is nothing random in it. The
    stress is Kruskal's stress-1, sqrt(sum of squared errors / sum of squared distances on the map): 0 is exact.
    """
    from sklearn.manifold import MDS  # takes half a second to import

    if len(gaps) < 2 or not gaps.any():
        return np.zeros((len(gaps), 2)), 0.0
    places = MDS(2, metric="precomputed", init="classical_mds", n_init=1, normalized_stress=False, eps=1e-9)
    found = places.fit_transform(gaps)
    found -= found.mean(axis=0)
    drawn = np.linalg.norm(found[:, None] - found[None], axis=2)
    return found, float(np.sqrt(((drawn - gaps) ** 2).sum() / (drawn**2).sum()))


def _best(measure: str) -> float | None:
    """The similarity of identical models."""
    card = find_card(measure)
    return None if card.self_score is None else float(card.similarity(card.self_score))


def _label(measure: str) -> str:
    """What a scale of `similarity` is called."""
    card = find_card(measure)
    return card.label or (measure if card.larger_is_closer else f"negative {measure}")


def _cells(axes: Axes, matrix: pd.DataFrame, low: float, high: float) -> AxesImage:
    """One heat map, with its numbers if there are not too many."""
    image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis")
    for (row, column), score in np.ndenumerate(matrix.to_numpy()) if len(matrix) <= MOST_NUMBERED else ():
        if not math.isnan(score):
            dark = score < low + 0.6 * (high - low)
            text = {"color": "white" if dark else "black", "ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, f"{score:.2f}", **text)
    names = list(map(shown_name, matrix.columns))
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    return image


def _side(models: int) -> float:
    """Inches of a heat map."""
    return 0.5 * models + 0.6 if models <= MOST_NUMBERED else 0.16 * models + 1.5


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def heat_map(scores: pd.DataFrame, measure: str) -> Figure:
    """Similarity of every pair of models: columns model1, model2 and score of one measure, as `univ.compare` gives."""
    card = find_card(measure)
    rows = scores.assign(similarity=card.similarity(scores["score"]))
    matrix = similarity_matrix(rows, directed=not card.symmetric)
    order = order_by_similarity(distances(matrix, _best(measure)))
    matrix = matrix.iloc[order, order]
    best = _best(measure)
    if best is not None:
        matrix = matrix.where(~np.eye(len(matrix), dtype=bool), best)
    side = _side(len(matrix))
    figure, ((panel,),) = new_figure(1, 1, side + 1.6, side + 0.6)
    image = _cells(panel, matrix, float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    figure.colorbar(image, ax=panel, shrink=0.8, label=_label(measure))
    return figure


def _setting(table: pd.DataFrame, measure: str, dataset: str, images: str) -> dict[float, pd.DataFrame]:
    """Radius -> similarity of every pair of models; all of them with the same models in the same order of similarity.

    The order is that of the mean over the radii.
    """
    rows = (table["measure"] == measure) & (table["dataset"] == dataset) & (table["input"] == images)
    data = quantities.with_similarity(table[rows])
    if data.empty:
        return {}
    directed = images == "inverted"
    mean = similarity_matrix(data, directed=directed)
    models = [mean.columns[i] for i in order_by_similarity(distances(mean, _best(measure)))]
    of_radius = {eps: similarity_matrix(rows, directed=directed) for eps, rows in data.groupby("eps")}
    return {eps: matrix.reindex(index=models, columns=models) for eps, matrix in of_radius.items()}


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def heat_maps(table: pd.DataFrame, measure: str, dataset: str, images: str) -> Figure | None:
    """Similarity of every pair of models, one panel per radius, similar models side by side.

    On inverted images the row is the model whose images were used; on regular images the map is symmetric.
    """
    matrices = _setting(table, measure, dataset, images)
    if not matrices:
        return None
    low = min(float(np.nanmin(matrix)) for matrix in matrices.values())
    high = max(float(np.nanmax(matrix)) for matrix in matrices.values())
    side = _side(len(next(iter(matrices.values()))))
    figure, axes = new_figure(1, len(matrices), side * len(matrices) + 1.6, side + 1, sharey=True)
    for panel, (eps, matrix) in zip(axes.flat, matrices.items()):
        image = _cells(panel, matrix, low, high)
        panel.set_title(f"eps {eps:g}")
    if images == "inverted":
        axes[0, 0].set_ylabel("inverted through")
    figure.colorbar(image, ax=list(axes.flat), shrink=0.8, label=f"{_label(measure)}, {INPUT_LABELS[images]}")
    return figure


@matplotlib.rc_context(STYLE)
def model_map(table: pd.DataFrame, measure: str, dataset: str, images: str) -> Figure | None:
    """The models as points of a plane, as near to each other as they are alike, one panel per radius, on one scale.

    A panel is turned (and mirrored) to lie as much as possible like the one before it. Its title has the stress, see
    `positions`. Three models or more.
    """
    matrices = _setting(table, measure, dataset, images)
    matrices = {eps: matrix.dropna(how="all").dropna(how="all", axis=1) for eps, matrix in matrices.items()}
    models = sorted({name for matrix in matrices.values() for name in matrix})
    if len(models) < 3:
        return None
    width = max(WIDTH * 0.7, 2.1 * len(matrices) + 0.4)
    figure, axes = new_figure(1, len(matrices), width, 3.6, sharex=True, sharey=True)
    before: dict[str, np.ndarray] = {}
    for panel, (eps, matrix) in zip(axes.flat, matrices.items()):
        names = [name for name in matrix if name in matrix.index]
        places, stress = positions(distances(matrix.loc[names, names], _best(measure)))
        if common := [name for name in names if name in before]:
            now, then = (np.array([of[name] for name in common]) for of in (dict(zip(names, places)), before))
            places = places @ orthogonal_procrustes(now, then)[0]
        before = dict(zip(names, places))
        for name, place in before.items():
            panel.plot(*place, color=shade(images, eps), **_marker(models.index(name)))
        panel.set_title(f"eps {eps:g}\nstress {stress:.2f}", fontsize=9)
        panel.set_aspect("equal")
        panel.grid(True, axis="both")
    reach = max(abs(end) for end in (*axes[0, 0].get_xlim(), *axes[0, 0].get_ylim()))
    axes[0, 0].set(xlim=(-reach, reach), ylim=(-reach, reach))
    handles = [Line2D([], [], color="0.7", label=shown_name(name), **_marker(i)) for i, name in enumerate(models)]
    title = f"distance: how far {_label(measure)} is below that of identical models; {INPUT_LABELS[images]}"
    columns = max(2, round(width / 1.6))
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)
    return figure


def _marker(number: int) -> dict[str, object]:
    """How a model is drawn on a map: by its shape, as the shade is the radius's."""
    return {"marker": MARKERS[number % len(MARKERS)], "markersize": 7, "markeredgecolor": "black", "linestyle": "none"}


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def layer_maps(table: pd.DataFrame, label: str) -> Figure:
    """Scores of every layer with every other, one panel per pair of models; the first layers are below and left.

    Args:
        table: long, with columns model1, layer1, model2, layer2, score.
        label: of the colour bar.
    """
    pairs = list(dict.fromkeys(zip(table["model1"], table["model2"])))
    low, high = table["score"].min(), table["score"].max()
    side = 4.0
    figure, axes = new_figure(1, len(pairs), side * len(pairs) + 1.6, side + 0.4)
    for panel, (first, second) in zip(axes.flat, pairs):
        rows = table[(table["model1"] == first) & (table["model2"] == second)]
        layers = [list(dict.fromkeys(rows[column])) for column in ("layer1", "layer2")]
        scores = rows.pivot_table(index="layer1", columns="layer2", values="score", dropna=False)
        scores = scores.reindex(index=layers[0], columns=layers[1]).to_numpy()
        image = panel.imshow(scores, vmin=low, vmax=high, cmap="magma", origin="lower", interpolation="nearest")
        sizes = [min(7.0, 0.75 * 72 * side / len(some)) for some in layers]  # points: names do not overlap
        panel.set_xticks(range(len(layers[1])), list(map(shown_name, layers[1])), rotation=90, fontsize=sizes[1])
        panel.set_yticks(range(len(layers[0])), list(map(shown_name, layers[0])), fontsize=sizes[0])
        panel.tick_params(length=1.5)
        panel.set_xlabel(shown_name(second))
        panel.set_ylabel(shown_name(first))
    figure.colorbar(image, ax=list(axes.flat), shrink=0.8, label=label)
    return figure
