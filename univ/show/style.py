"""How all figures look: sizes, fonts, colours; names as a figure can show them."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from univ.errors import plain
from univ.show.quantities import dataset_label

INPUT_COLORS = {"standard": ("#e0f9fa", "darkturquoise", "#00393d"), "inverted": ("#faf0fa", "plum", "#4b1d52")}
INPUT_LABELS = {"standard": "regular images", "inverted": "inverted images"}
SHADED_EPS = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0)  # one shade each, the same in every figure

WIDTH = 7.0  # inches: the text width of a two-column paper, so that fonts keep their size in print
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "pdf.fonttype": 42,  # editable text instead of outlines
    "savefig.dpi": 200,
    "text.parse_math": False,  # a $ in the name of a model or data set is a $
    "text.usetex": False,
}
LONGEST_NAME = 60


def shade(images: str, eps: float) -> tuple[float, float, float]:
    """The colour of a box: turquoise on regular images, plum on inverted ones, darker for larger radii."""
    scale = LinearSegmentedColormap.from_list(images, INPUT_COLORS[images])
    return to_rgb(scale(np.interp(eps, SHADED_EPS, np.linspace(0, 1, len(SHADED_EPS)))))


def new_figure(rows: int, columns: int, width: float, height: float, **subplots: object) -> tuple[Figure, np.ndarray]:
    """A figure that belongs to nobody: no global state, nothing to close."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def label_of(dataset: str) -> str:
    return shown_name(dataset_label(dataset))


def shown_name(text: str) -> str:
    """A name from a file as a figure can show it."""
    return plain(text, keep="\n")[:LONGEST_NAME]
