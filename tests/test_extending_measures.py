"""What a newcomer adds is one module: a measure in it reaches rep.py, the result files, the figures and the report."""

import importlib
import sys

import pandas as pd
import pytest
import torch
from commands import module_of
from digits_study import ARCHS, flags, forward, own_images, write_study

import rep
from univ import measures, results
from univ.measures import CARDS
from univ.show import plots

MODULE = '''
"""Distance of the mean representations, in units of their norms: (N, D), (N, D) -> [0, 1], 0 = alike."""

import torch

from univ.measures.base import Measure, Pair
from univ.measures.cards import as_function, register
from univ.measures.centering import Center


@register("means", label="alike on average", larger_is_closer=False, range=(0, 1), invariances=("permutation",))
def mean_distance_measure(*, center: bool = False) -> Measure:
    """Distance of the two mean representations over the sum of their norms."""
    return Measure(Center(center=center, double=True), score)


mean_distance = as_function(mean_distance_measure, "mean_distance")


def score(pair: Pair) -> float:
    a, b = (model.block(0, len(model)).mean(dim=0) for model in (pair.a, pair.b))
    width = max(len(a), len(b))
    a, b = (torch.nn.functional.pad(mean, (0, width - len(mean))) for mean in (a, b))
    return ((a - b).norm() / (a.norm() + b.norm())).item()
'''


@pytest.fixture
def mean_distance(tmp_path, monkeypatch):
    """The function of the new module, which lies in the package's folder for the length of a test."""
    (tmp_path / "means.py").write_text(MODULE)
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    before = dict(CARDS)
    measures.find_modules()
    yield sys.modules["univ.measures.means"].mean_distance
    CARDS.clear()
    CARDS.update(before)
    del sys.modules["univ.measures.means"], measures.means
    importlib.invalidate_caches()


def test_a_measure_is_one_module(mean_distance, tmp_path, monkeypatch):
    study = write_study(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    rep.main([*flags(study), "-r", "means", "-c", "0", "--num-inputs", "40"])
    table = results.load_long_table("results").query("measure == 'means'")
    drawn = torch.tensor(pd.read_csv("results/indices/digits/indices_0.csv")["0"].tolist())
    reps = [forward(study, arch, own_images()[0][drawn])[0] for arch in ARCHS[:2]]
    score = table.set_index(["model1", "model2"])["score"]
    assert score[*ARCHS[:2]] == pytest.approx(mean_distance(*reps), abs=1e-6)

    figure = plots.heat_maps(results.load_long_table("results"), "means", "digits", "standard")
    assert any("alike on average" in axes.get_ylabel() for axes in figure.axes)
    module_of("scripts/report.py").main(["--quiet"])
    assert "alike on average" in (tmp_path / "results/report.html").read_text()
