"""Figures hold what the tables hold; all of them are drawn from a full, a partial and an empty results folder."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from synthetic_results import DIGITS_MODELS, write_scores, write_sources

from univ.show import plots, quantities, style
from univ.show.sources import Sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize("kind", ["standard", "inverted"])
def test_boxes_show_the_scores(sources, kind):
    table = sources.scores
    figure = plots.similarity_by_eps(table, kind, knn=100)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["CKA", "ProcrustesSim", "negative RTD", "Jaccard (k = 100)"]
    proc = table[(table["measure"] == "proc") & (table["input"] == kind)]
    scores = [np.sort((2 - rows.to_numpy()) / 2) for _, rows in proc.groupby("eps")["score"]]
    boxes = [patch.get_path().get_extents() for patch in figure.axes[1].patches]  # from quartile to quartile
    ends = [(box.y0, box.y1) for box in sorted(boxes, key=lambda box: box.x0)]
    np.testing.assert_allclose(ends, [np.quantile(values, [0.25, 0.75]) for values in scores])
    points = [line.get_ydata() for line in figure.axes[1].lines if line.get_marker() == "."]
    np.testing.assert_allclose(points, scores)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["digits"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["eps 0", "eps 1", "eps 2"]


def test_legends_lie_outside_the_data(sources, tmp_path):
    agreement = plots.agreement_by_eps(sources.scores, "standard", sources.bounds)
    for figure in (plots.similarity_by_eps(sources.scores, "standard"), agreement):
        plots.save(figure, tmp_path / "figure")
        legend = figure.legends[0].get_window_extent()
        assert all(not legend.overlaps(axes.get_window_extent()) for axes in figure.axes)
        assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1  # nothing is cut off


@pytest.mark.parametrize(("kind", "base"), [("standard", "darkturquoise"), ("inverted", "plum")])
def test_shades_darken_with_eps(kind, base):
    light = [sum(style.shade(kind, eps)) for eps in style.SHADED_EPS]
    assert light == sorted(light, reverse=True)
    nearest = min(np.abs(np.array(style.shade(kind, eps)) - to_rgb(base)).max() for eps in np.linspace(0, 3, 50))
    assert nearest < 0.05  # the colour itself is among them


def test_agreement_has_a_bound_mark_at_every_box(sources):
    figure = plots.agreement_by_eps(sources.scores, "standard", sources.bounds)
    upper = sources.bounds[sources.bounds["input"] == "standard"]["upper"].tolist()
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "_" and line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx(upper)]
    without = plots.agreement_by_eps(sources.scores, "standard")
    assert "mean upper bound" not in [text.get_text() for text in without.legends[0].get_texts()]


def test_figure_five(sources):
    figure = plots.similarity_by_prediction(sources.subgroups, "digits")
    assert [axes.get_title() for axes in figure.axes] == ["CKA", "ProcrustesSim", "negative RTD", "Jaccard (k = 10)"]
    assert [text.get_text() for text in figure.axes[3].texts] == ["p = 0.125", "p = 0.125"]
    assert "4 models cannot give a p-value below 0.125" in figure.legends[0].get_title().get_text()
    assert plots.similarity_by_prediction(sources.subgroups, "imagenet") is None


def test_jaccard_by_k_leaves_out_what_is_missing(sources):
    figure = plots.jaccard_by_k(sources.scores, "inverted", ks=(10, 77, 500))
    assert [axes.get_title() for axes in figure.axes] == ["k = 10", "k = 500"]


def test_heat_map_rows_are_the_sources(sources):
    table = sources.scores
    figure = plots.heat_maps(table, "cka", "digits", "inverted")
    shown = figure.axes[0].images[0].get_array()
    cell = table[(table["measure"] == "cka") & (table["input"] == "inverted") & (table["eps"] == 0)]
    cell = cell[(cell["model1"] == "resnet10") & (cell["model2"] == "vgg11")]["score"].item()
    order = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert shown[order.index("resnet10"), order.index("vgg11")] == pytest.approx(cell)
    symmetric = plots.heat_maps(table, "cka", "digits", "standard").axes[0].images[0].get_array()
    assert np.ma.allequal(symmetric, symmetric.T)
    assert plots.heat_maps(table, "cka", "imagenet", "standard") is None


def test_inversion_grid(sources):
    inversions = quantities.load_inversions("digits", sources.data, rows=3)
    panel = plots.inversion_grid(inversions).axes[0]
    titles = [text.get_text() for text in panel.get_xticklabels()]
    assert titles[:4] == ["seed", "target", "densenet17\neps 0", "densenet17\neps 2"]
    assert len(titles) == 2 + 2 * len(DIGITS_MODELS)
    picture = panel.images[0].get_array()
    assert picture.shape == (3 * 34 - 2, 10 * 34 - 2, 3)
    cell = picture[34 : 34 + 32, 3 * 34 : 3 * 34 + 32]  # second row, fourth column
    assert np.array_equal(cell, inversions.inverted["densenet17", 2.0][1].permute(1, 2, 0).numpy())


def test_every_figure_has_its_name(sources):
    drawn = {stem for draw in plots.FIGURES.values() for stem, figure in draw(sources) if figure is not None}
    names = ("similarity", "agreement", "jsd", "jaccard_by_k")
    stems = {f"{name}_{kind}" for name in names for kind in ("standard", "inverted")}
    measures = ("cka", "proc", "rtd", "jacc", "dis", "jsd")
    maps = itertools.product(("heat_map", "model_map"), measures, ("standard", "inverted"))
    stems |= {f"{kind}_{measure}_digits_{images}" for kind, measure, images in maps}
    assert drawn == stems | {"rep_vs_pred_digits_standard", "probe_agreement", "inverted_digits"}


def test_figures_without_jupyter_are_the_same_each_time(sources, tmp_path):
    words = ["--results", str(sources.results), "--data", str(sources.data), "--quiet"]
    for folder in ("a", "b"):
        plots.main([*words, "--figs", str(tmp_path / folder), "--only", "probe_agreement", "inv_img_example"])
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    stems = ("inverted_digits", "probe_agreement")
    assert set(drawn) == {f"{stem}.{suffix}" for stem in stems for suffix in ("pdf", "png")}
    assert drawn["probe_agreement.pdf"].startswith(b"%PDF")
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_an_empty_folder_gives_no_figures_and_no_error(tmp_path):
    empty, figs = str(tmp_path / "empty"), tmp_path / "figs"
    plots.main(["--results", empty, "--data", empty, "--figs", str(figs), "--quiet"])
    assert not figs.exists()


def test_results_of_one_setting_only(tmp_path):
    write_scores(tmp_path, models=("a", "b"), eps=("eps1",), inputs=("standard",), ks=(5,))
    table = Sources(tmp_path).scores
    assert plots.similarity_by_eps(table, "standard") is not None
    assert plots.similarity_by_eps(table, "inverted") is None
    assert plots.probe_agreement(table, Sources(tmp_path).probes) is None
