"""Heat maps hold the scores in an order of similarity; maps hold the distances, as far as a plane can."""

import itertools

import numpy as np
import pandas as pd
import pytest
from synthetic_results import write_scores

from univ.show import maps, plots
from univ.show.sources import Sources


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    write_scores(root)
    return Sources(root).scores


def distances_of(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def shown(panel) -> pd.DataFrame:
    models = [text.get_text() for text in panel.get_xticklabels()]
    return pd.DataFrame(np.ma.filled(panel.images[0].get_array(), np.nan), index=models, columns=models)


@pytest.mark.parametrize("images", ["standard", "inverted"])
def test_heat_map_cells_are_the_scores(table, images):
    figure = maps.heat_maps(table, "cka", "digits", images)
    rows = table[(table["measure"] == "cka") & (table["input"] == images)]
    for panel, eps in zip(figure.axes, (0, 1, 2)):
        matrix, of_radius = shown(panel), rows[rows["eps"] == eps]
        for row in of_radius.itertuples():
            assert matrix.at[row.model1, row.model2] == pytest.approx(row.score)  # rows are the sources
        assert np.isnan(np.diag(matrix)).all()
        assert images == "inverted" or np.allclose(matrix, matrix.T, equal_nan=True)
    assert len({tuple(shown(panel).columns) for panel in figure.axes[:3]}) == 1  # one order in all panels
    assert maps.heat_maps(table, "cka", "imagenet", images) is None


def test_order_is_the_best_of_the_tree():
    generator = np.random.default_rng(0)
    line = np.sort(generator.uniform(0, 10, 7))
    shuffled = generator.permutation(7)
    gaps = np.abs(line[shuffled][:, None] - line[shuffled][None])
    places = shuffled[maps.order_by_similarity(gaps)].tolist()
    assert places in (list(range(7)), list(range(7))[::-1])  # of points on a line it is their order
    assert maps.order_by_similarity(np.zeros((2, 2))) == [0, 1] and maps.order_by_similarity(np.zeros((0, 0))) == []


def test_two_families_stay_together():
    matrix = pd.DataFrame(0.2, index=list("axbycz"), columns=list("axbycz"))
    for family in ("abc", "xyz"):
        for pair in itertools.permutations(family, 2):
            matrix.at[pair] = 0.9
    order = "".join(matrix.columns[i] for i in maps.order_by_similarity(maps.distances(matrix, 1.0)))
    assert set(order[:3]) in (set("abc"), set("xyz"))


def test_map_is_exact_where_a_plane_holds_the_distances():
    points = np.random.default_rng(0).normal(size=(9, 2))
    found, stress = maps.positions(distances_of(points))
    np.testing.assert_allclose(distances_of(found), distances_of(points), atol=1e-6)
    assert stress < 1e-6
    np.testing.assert_array_equal(found, maps.positions(distances_of(points))[0])


def test_stress_of_a_tetrahedron():
    found, stress = maps.positions(np.ones((4, 4)) - np.eye(4))  # four points, all 1 apart: no plane holds them
    drawn = distances_of(found)
    assert stress == pytest.approx(np.sqrt(((drawn - 1 + np.eye(4)) ** 2).sum() / (drawn**2).sum()))
    assert 0 < stress < 0.2
    assert maps.positions(np.zeros((3, 3)))[1] == 0


def test_distances_of_pairs_without_a_score_or_in_one_direction():
    nan = np.nan
    matrix = pd.DataFrame([[1, 0.8, nan], [0.6, 1, nan], [0.5, nan, 1]], index=list("abc"), columns=list("abc"))
    np.testing.assert_allclose(maps.distances(matrix, 1.0), [[0, 0.3, 0.5], [0.3, 0, 0.5], [0.5, 0.5, 0]])
    np.testing.assert_allclose(maps.distances(matrix, None)[0], [0, 0, 0.2])
    assert not maps.distances(pd.DataFrame(nan, index=list("ab"), columns=list("ab")), 1.0).any()


def test_map_draws_a_point_per_model_and_panels_lie_alike(table):
    figure = maps.model_map(table, "cka", "digits", "standard")
    assert [panel.get_title().splitlines()[0] for panel in figure.axes] == ["eps 0", "eps 1", "eps 2"]
    rows = table[(table["measure"] == "cka") & (table["input"] == "standard")]
    models, places = sorted({*rows["model1"], *rows["model2"]}), []
    for panel, eps in zip(figure.axes, (0.0, 1.0, 2.0)):
        place = {maps.MARKERS.index(line.get_marker()): line.get_xydata()[0] for line in panel.lines}
        points = np.array([place[number] for number in range(len(models))])
        of_eps = rows[rows["eps"] == eps].rename(columns={"score": "similarity"})
        matrix = maps.similarity_matrix(of_eps, directed=False).loc[models, models]
        drawn, gaps = distances_of(points), maps.distances(matrix, 1.0)
        stress = np.sqrt(((drawn - gaps) ** 2).sum() / (drawn**2).sum())
        assert f"stress {stress:.2f}" in panel.get_title()
        places.append(points)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == models
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.linspace(0, 6.2, 20)]
    apart = [np.linalg.norm(places[1] @ turn - places[0]) for turn in turns]
    assert apart[0] == min(apart)  # no turn brings the second panel nearer to the first


def test_two_models_make_no_map(table):
    two = table[(table["model1"] == "vgg11") & (table["model2"] == "resnet10")]
    assert maps.model_map(two, "cka", "digits", "standard") is None
    assert maps.heat_maps(two, "cka", "digits", "standard") is not None


def test_many_models_have_no_numbers():
    names = [f"model{i}" for i in range(20)]
    rows = [(a, b, 0.5, "cka") for a, b in itertools.combinations(names, 2)]
    figure = maps.heat_map(pd.DataFrame(rows, columns=["model1", "model2", "score", "measure"]), "cka")
    assert not figure.axes[0].texts and figure.get_size_inches()[0] < 8


def test_plots_draws_them(tmp_path):
    write_scores(tmp_path / "results", models=("a", "b", "c"), eps=("eps1",), inputs=("standard",), ks=(10,))
    words = [
        "--results",
        str(tmp_path / "results"),
        "--figs",
        str(tmp_path / "figs"),
        "--only",
        "model_maps",
        "--quiet",
    ]
    plots.main(words)
    names = {path.name for path in (tmp_path / "figs").iterdir()}
    measures = ("cka", "proc", "rtd", "jacc", "dis", "jsd")
    kinds = itertools.product(("heat_map", "model_map"), measures, ("pdf", "png"))
    assert names == {f"{kind}_{measure}_digits_standard.{suffix}" for kind, measure, suffix in kinds}
