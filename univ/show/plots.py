"""Long tables -> matplotlib figures, the study's and a few more; `python -m univ.plots` draws all of them into figs/.

The functions return figures, or None where there is nothing to draw, and save nothing; `save` writes PDF and PNG.

    python -m univ.plots
    python -m univ.plots --results results/digits --figs figs/digits --only data_effect rep_vs_pred_sim

Lightness carries the radius and position the data set, so the figures can be read in grey and by the colour-blind.
"""

import argparse
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from loguru import logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from univ import cli, files, results, runs
from univ.measures.cards import SHOWN
from univ.show import differences, quantities
from univ.show.maps import heat_maps, model_map
from univ.show.quantities import FUNCTIONAL, REPRESENTATIONAL, Inversions
from univ.show.sources import Sources, add_arguments
from univ.show.style import (
    INPUT_COLORS,
    INPUT_LABELS,
    STYLE,
    WIDTH,
    label_of,
    new_figure,
    shade,
    shown_name,
)

GROUP_COLORS = {"agree": "#0072B2", "disagree": "#E69F00"}  # blue and orange of Okabe and Ito's colour-blind safe set
FEW = 15  # with fewer scores than this in every box, the scores themselves are drawn too


def _box(axes: Axes, position: float, scores: np.ndarray, color: object, width: float, points: float = 0) -> None:
    """Quartiles, median, and whiskers to the last score within 1.5 interquartile ranges.

    Args:
        points: over which width the scores themselves are spread, in an even pattern that is the same every time; with
            0 there are those beyond the whiskers only.
    """
    axes.boxplot(
        [scores],
        positions=[position],
        widths=width,
        patch_artist=True,
        manage_ticks=False,
        showfliers=not points,
        boxprops={"facecolor": color, "linewidth": 0.8},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"linewidth": 0.8},
        capprops={"linewidth": 0.8},
        flierprops={"markersize": 2.5, "markeredgecolor": "0.4"},
    )
    if points:
        spread = points * ((np.arange(len(scores)) * 0.618034) % 1 - 0.5)
        axes.plot(position + spread, np.sort(scores), ".", color="black", markersize=3.5, alpha=0.6)


def _eps_boxes(
    axes: Axes, data: pd.DataFrame, images: str, bounds: pd.DataFrame | None, rotation: float | None
) -> None:
    """Boxes of `data.similarity` by data set and, within it, by radius; marks at the mean bounds of each box."""
    few = data.groupby(["dataset", "eps"]).size().max() <= FEW
    left, ticks = 0.0, {}
    for dataset in quantities.order_datasets(data["dataset"]):
        scores = data[data["dataset"] == dataset].dropna(subset="similarity").groupby("eps")["similarity"]
        radii = list(scores.groups)
        positions = left + np.arange(len(radii))
        for position, (eps, of_eps) in zip(positions, scores):
            _box(axes, position, of_eps.to_numpy(), shade(images, eps), 0.8, 0.4 if few else 0)
        if bounds is not None:
            known = bounds[(bounds["dataset"] == dataset) & (bounds["input"] == images)].set_index("eps")
            for name, line in (("upper", "-"), ("lower", "--")):
                values = [known[name].get(eps, math.nan) for eps in radii]
                axes.plot(positions, values, line, marker="_", markersize=9, color="black", linewidth=1)
        ticks[positions.mean() if len(radii) else left] = label_of(dataset)
        left += len(radii) + 1
    spare = max(0.0, 6 - left) / 2  # a few boxes keep their width and stand in the middle
    axes.set_xlim(-0.8 - spare, left - 1.2 + spare)
    axes.set_xticks(list(ticks), list(ticks.values()))
    if rotation is None:
        rotation = 15 if len(ticks) > 3 else 0
    axes.tick_params(axis="x", length=0, rotation=rotation)


def _jaccard_label(data: pd.DataFrame) -> str:
    known = sorted(set(data["knn"].dropna())) if "knn" in data else []
    return f"Jaccard (k = {int(known[0])})" if len(known) == 1 else "Jaccard"


@matplotlib.rc_context(STYLE)
def _by_eps(
    panels: Mapping[str, pd.DataFrame],
    images: str,
    what: str,
    size: tuple[float, float],
    columns: int,
    *,
    shared: bool = True,
    bounds: pd.DataFrame | None = None,
    rotation: float | None = None,
) -> Figure | None:
    """Panels of `_eps_boxes`, by title, with one legend.

    Args:
        what: is shown.
        size: width and height, inches.
        shared: whether the panels have one scale, or each its own.
        rotation: of the data sets' names, degrees; None turns them where they are many.
    """
    if not panels:
        return None
    label = f"{what} on {INPUT_LABELS[images]}"
    radii = sorted({eps for data in panels.values() for eps in data["eps"]})
    handles: list[Patch | Line2D] = [
        Patch(facecolor=shade(images, eps), edgecolor="black", linewidth=0.8, label=f"eps {eps:g}") for eps in radii
    ]
    if bounds is not None and (bounds["input"] == images).any():
        for side, line in (("upper", "-"), ("lower", "--")):
            handles.append(Line2D([], [], color="black", linestyle=line, label=f"mean {side} bound"))
    else:
        bounds = None
    figure, axes = new_figure(math.ceil(len(panels) / columns), columns, *size, sharey=shared)
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    for panel, (title, data) in zip(axes.flat, panels.items()):
        _eps_boxes(panel, data, images, bounds, rotation)
        panel.set_title(title)
    axes[0, 0].set_ylabel(label) if shared else figure.supylabel(label, fontsize=9)
    rows = math.ceil(len(handles) / (6 if size[0] >= WIDTH else 4))
    figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / rows))
    return figure


def similarity_by_eps(
    table: pd.DataFrame, images: str, measures: Sequence[str] = REPRESENTATIONAL, *, knn: int | None = None
) -> Figure | None:
    """Similarity of pairs of models by data set and radius, one panel per measure.

    Args:
        table: long table, with `knn` among its settings where several k were computed.
        knn: which k of the neighbour-based measures; the smallest there is by default.
    """
    data = table[(table["input"] == images) & table["measure"].isin(list(measures))]
    data = quantities.with_similarity(quantities.one_k(data, knn) if "knn" in data else data)
    panels = {}
    for measure in measures:
        if len(of_measure := data[data["measure"] == measure]):
            panels[_jaccard_label(of_measure) if measure == "jacc" else SHOWN[measure].label] = of_measure
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / max(columns, 1))
    return _by_eps(panels, images, "similarity", (WIDTH, 2.4 * rows + 0.4), columns, shared=False)


def agreement_by_eps(
    table: pd.DataFrame, images: str, bounds: pd.DataFrame | None = None, measure: str = "dis"
) -> Figure | None:
    """Agreement of predictions by data set and radius, with the mean bounds that accuracies imply.

    Args:
        bounds: as `quantities.mean_bounds` gives them; no lines where a setting has none.
        measure: another measure of predictions instead.
    """
    data = quantities.with_similarity(table[(table["input"] == images) & (table["measure"] == measure)])
    panels = {"": data} if len(data) else {}
    return _by_eps(panels, images, SHOWN[measure].label, (WIDTH * 0.75, 3), 1, bounds=bounds)


def jsd_by_eps(table: pd.DataFrame, images: str) -> Figure | None:
    """Similarity of predicted probabilities, 1 - JSD / ln 2, by data set and radius."""
    return agreement_by_eps(table, images, measure="jsd")


def jaccard_by_k(table: pd.DataFrame, images: str, ks: Sequence[int] = (10, 100, 500)) -> Figure | None:
    """Jaccard similarity by data set and radius, one panel per number of neighbours (`knn`) that has results."""
    data = table[(table["input"] == images) & (table["measure"] == "jacc")]
    data = quantities.with_similarity(data[data["knn"].isin(ks)])
    panels = {f"k = {k}": data[data["knn"] == k] for k in ks if (data["knn"] == k).any()}
    rotation = 30 if data["dataset"].nunique() > 1 else 0
    return _by_eps(panels, images, "Jaccard", (WIDTH, 2.9), len(panels), rotation=rotation)


@matplotlib.rc_context(STYLE)
def similarity_by_prediction(
    subgroups: pd.DataFrame, dataset: str, images: str = "standard", *, k: int = 10
) -> Figure | None:
    """The study's Figure 5: similarity on the images where predictions agree and where they differ, at eps 0 and 3.

    One panel per measure; above each pair of boxes the p-value of the difference of means, permuted at the level of
    models (`differences.model_level_test`). `k` is that of the Jaccard panel.
    """
    rows = subgroups[(subgroups["dataset"] == dataset) & (subgroups["input"] == images)]
    panels = {measure: differences.subgroup_rows(rows, measure, k) for measure in REPRESENTATIONAL}
    panels = {measure: data for measure, data in panels.items() if len(data)}
    if not panels:
        return None
    smallest: list[tuple[float, int]] = []
    figure, axes = new_figure(1, len(panels), WIDTH, 2.8)
    for panel, (measure, data) in zip(axes.flat, panels.items()):
        radii = sorted(data["eps"].unique())
        few = data.groupby(["eps", "pred_type"]).size().max() <= FEW
        for (position, eps), (side, group) in itertools.product(enumerate(radii), enumerate(GROUP_COLORS)):
            of_group = data[(data["eps"] == eps) & (data["pred_type"] == group)]
            scores = of_group["similarity"].to_numpy()
            _box(panel, position + 0.4 * side - 0.2, scores, GROUP_COLORS[group], 0.36, 0.2 if few else 0)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high + 0.18 * (high - low))
        for position, eps in enumerate(radii):
            test = differences.subgroup_difference(data[data["eps"] == eps])
            smallest.append((test.smallest_p, test.models))
            text = "" if math.isnan(test.p) else f"p = {test.p:.3f}" if test.p >= 0.001 else "p < 0.001"
            panel.text(position, high + 0.06 * (high - low), text, ha="center", va="bottom", fontsize=7.5)
        panel.set_title(f"Jaccard (k = {k})" if measure == "jacc" else SHOWN[measure].label)
        panel.set_xticks(range(len(radii)), [f"eps {eps:g}" for eps in radii])
    what = ", ".join(text for text in ("similarity", label_of(dataset), INPUT_LABELS[images]) if text)
    figure.supylabel(what, fontsize=9)
    handles = [Patch(facecolor=color, edgecolor="black", label=group) for group, color in GROUP_COLORS.items()]
    title = "predictions"
    least, models = max(smallest, default=(0.0, 0))
    if least > 0.05:  # so that "not significant" is not read as "no difference"
        title += f"   ({models} models cannot give a p-value below {least:.3g})"
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def probe_agreement(table: pd.DataFrame, probes: pd.DataFrame) -> Figure | None:
    """Agreement of pretrained classifiers at eps 0 and at the largest eps, and of probes on frozen representations.

    Box and points, one point per pair, one panel per data set that has probes.
    """
    panels = quantities.agreements(table, probes)
    if not panels:
        return None
    groups = {name: list(dict.fromkeys(data["group"])) for name, data in panels.items()}
    width = max(WIDTH * 0.6, 1.35 * sum(map(len, groups.values())))
    widths = {"width_ratios": [len(group) for group in groups.values()]}
    figure, axes = new_figure(1, len(panels), width, 3, sharey=True, gridspec_kw=widths)
    for panel, (name, data) in zip(axes.flat, panels.items()):
        for position, group in enumerate(groups[name]):
            scores = data.loc[data["group"] == group, "agreement"].to_numpy(dtype=float)
            _box(panel, position, scores, "paleturquoise", 0.6, 0.5)
        panel.set_xticks(range(len(groups[name])), list(map(shown_name, groups[name])))
        panel.set_title(label_of(name))
        panel.tick_params(axis="x", labelsize=8)
    axes[0, 0].set_ylabel("agreement")
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def inversion_grid(inversions: Inversions) -> Figure | None:
    """Seed, target and what each model at each radius made of the seed, one row per target."""
    if not inversions.inverted:
        return None
    models = list(dict.fromkeys(model for model, _ in inversions.inverted))
    keys = [(model, eps) for model in models for name, eps in sorted(inversions.inverted) if name == model]
    columns = {"seed": inversions.seeds, "target": inversions.targets}
    columns |= {f"{shown_name(model)}\neps {eps:g}": inversions.inverted[model, eps] for model, eps in keys}
    rows, _, _, width = inversions.targets.shape
    gap = max(1, width // 16)
    # one picture of all: a grid of axes takes a second to draw for every few dozen images
    images = torch.stack(list(columns.values()), dim=1).flatten(0, 1)  # row by row
    framed = torch.nn.functional.pad(images.clamp(0, 1), (0, gap, 0, gap), value=1)
    grid = framed.unflatten(0, (rows, -1)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    grid = grid[:-gap, :-gap].numpy()
    side = min(1.0, 12 / len(columns))  # inches per image
    figure, ((panel,),) = new_figure(1, 1, side * len(columns) + 0.1, side * rows + 0.5)
    panel.imshow(grid, interpolation="nearest")
    centers = [column * (width + gap) + width / 2 for column in range(len(columns))]
    longest = max(len(line) for name in columns for line in name.splitlines())
    size = min(8, 8 * side, 110 * side / longest)  # points; a letter is about 0.6 of its size wide
    panel.set_xticks(centers, list(columns), fontsize=size)
    panel.tick_params(axis="x", length=0, labeltop=True, labelbottom=False)
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    return figure


# ---------------------------------------------------------------------------------------------------- all of them

Drawn = Iterator[tuple[str, Figure | None]]


def data_effect(sources: Sources) -> Drawn:
    """Similarity, agreement and JSDSim by data set and radius."""
    lines = quantities.missing(sources.scores, [*REPRESENTATIONAL, *FUNCTIONAL])
    for line in lines + quantities.pooled(quantities.one_k(sources.scores, sources.knn)):
        logger.info("data_effect: {}", line)
    for images in INPUT_COLORS:
        yield f"similarity_{images}", similarity_by_eps(sources.scores, images, knn=sources.knn)
        yield f"agreement_{images}", agreement_by_eps(sources.scores, images, sources.bounds)
        yield f"jsd_{images}", jsd_by_eps(sources.scores, images)


def rep_vs_pred_sim(sources: Sources) -> Drawn:
    """Figure 5 for every data set and input that has subgroups."""
    if sources.subgroups.empty:
        logger.info("rep_vs_pred_sim: no {} below {}", results.SUBGROUPS_NAME, sources.results)
    for dataset, images in sorted(set(zip(sources.subgroups["dataset"], sources.subgroups["input"]))):
        name = "_".join(["rep_vs_pred", *([dataset.replace("/", "-")] if dataset else []), images])
        yield name, similarity_by_prediction(sources.subgroups, dataset, images, k=sources.knn)


def probes(sources: Sources) -> Drawn:
    """Agreement of classifiers and of probes."""
    if sources.probes.empty:
        logger.info("probe_agreement: no {} below {}", results.PROBES_NAME, sources.results)
    yield "probe_agreement", probe_agreement(sources.scores, sources.probes)


def jaccard_apx(sources: Sources) -> Drawn:
    """Jaccard for several numbers of neighbours."""
    for line in quantities.missing(sources.scores, ["jacc"]):
        logger.info("jaccard_apx: {}", line)
    for images in INPUT_COLORS:
        yield f"jaccard_by_k_{images}", jaccard_by_k(sources.scores, images)


def inv_img_example(sources: Sources) -> Drawn:
    """Seed, target and inverted images per model, for every data set that has inverted images."""
    for dataset in quantities.inverted_datasets(sources.data):
        folder = sources.data / dataset / "inverted"
        if not folder.is_dir():
            logger.info("inv_img_example: no {}", folder)
            continue
        inversions = quantities.load_inversions(dataset, sources.data)
        for line in inversions.missing:
            logger.info("inv_img_example: {}: {}", dataset, line)
        yield f"inverted_{dataset}", inversion_grid(inversions)


def model_maps(sources: Sources) -> Drawn:
    """Heat maps of all pairs of models, ordered by similarity, and maps of the models."""
    scores = quantities.one_k(sources.scores, sources.knn)
    if scores.empty:
        logger.info("model_maps: no scores below {}", sources.results)
    settings = scores.groupby(["dataset", "measure"]).groups
    for dataset, measure in itertools.product(quantities.order_datasets(scores["dataset"]), SHOWN):
        for images in INPUT_COLORS if (dataset, measure) in settings else ():
            setting = f"{measure}_{dataset.replace('/', '-')}_{images}"
            yield f"heat_map_{setting}", heat_maps(scores, measure, dataset, images)
            yield f"model_map_{setting}", model_map(scores, measure, dataset, images)


FIGURES: dict[str, Callable[[Sources], Drawn]] = {
    "data_effect": data_effect,
    "rep_vs_pred_sim": rep_vs_pred_sim,
    "probe_agreement": probes,
    "model_maps": model_maps,
    "jaccard_apx": jaccard_apx,
    "inv_img_example": inv_img_example,
}
"""What each notebook draws, by the notebook's name."""


@matplotlib.rc_context(STYLE)
def save(figure: Figure | None, path: Path | str) -> bool:
    """Write `<path>.pdf` and `<path>.png`, atomically; without a figure say so in the log, and return False."""
    path = Path(path)
    if figure is None:
        logger.info("{}: nothing to draw", path.name)
        return False
    figure.draw_without_rendering()  # the layout takes longer than the drawing: once for both files
    figure.set_layout_engine("none")
    # without a date, so that the same results give the same file
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
        drawn = io.BytesIO()  # a backend that cannot write ends in errors of its own
        figure.savefig(drawn, format=suffix, metadata=metadata)
        files.write_bytes(path.with_name(f"{path.name}.{suffix}"), drawn.getvalue())
    logger.info("wrote {}.pdf (and .png)", path)
    return True


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m univ.plots", description=__doc__)
    add_arguments(parser)
    add = parser.add_argument
    add("--figs", type=cli.output_dir, default=Path("figs"), help="folder the figures go to")
    add("--only", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="figures of these notebooks only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start(quiet=args.quiet)
    sources = Sources.of(args)
    drawn = itertools.chain.from_iterable(FIGURES[name](sources) for name in args.only)
    count = sum(save(figure, args.figs / files.file_name(stem, "figure")) for stem, figure in drawn)
    logger.info("{} figures in {}", count, args.figs)


if __name__ == "__main__":
    cli.run(main)
