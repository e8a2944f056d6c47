"""What a newcomer adds, added for the length of a test: it reaches the commands, the figures and the report."""

import importlib
import sys

import pandas as pd
import pytest
import torch
from commands import module_of
from digits_study import ARCHS, flags, forward, own_images, write_study
from torch import Tensor

import rep
from univ import measures, results
from univ.data import DATASETS, Dataset, Request, open_training
from univ.data.images import TensorImages
from univ.measures import CARDS
from univ.models import build_model, checkpoints, default_models
from univ.show import plots
from univ.show.sources import Sources


def open_stripes(dataset: Dataset, request: Request) -> TensorImages:
    """Images of as many stripes as their label says, which no file holds."""
    labels = torch.arange(40 if request.split == "train" else 30) % dataset.num_classes
    wave = torch.linspace(0, 1, request.image_size) * (1 + labels[:, None])
    rows = ((wave + torch.arange(len(labels))[:, None] / 30) % 1 * 255).to(torch.uint8)
    pixels: Tensor = rows[:, None, :, None].expand(-1, 3, -1, request.image_size).contiguous()
    return TensorImages(pixels, labels, name=f"{dataset.name}/{request.split}", augment=request.augmentation)


STRIPES = Dataset(
    "stripes",
    "Stripes of $5",
    open_stripes,
    num_classes=5,
    image_size=32,
    default_path=None,
    num_compared=20,
    architectures="digits",
    compared_models=("vgg11", "resnet10"),
    mean=(0.5,) * 3,
    std=(0.3,) * 3,
    suffix=".pth",
)


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """The data set, and two models of it without training where a training run would leave them."""
    monkeypatch.setitem(DATASETS, "stripes", STRIPES)
    monkeypatch.chdir(tmp_path)
    for eps in ("eps0", "eps1"):
        for seed, arch in enumerate(default_models("stripes", eps)):
            model = build_model(arch, "stripes", seed=seed)
            checkpoints.save_checkpoint(tmp_path / f"data/cnns/stripes/{eps}/{arch}.pth", model, epoch=1)
    return tmp_path


def test_a_data_set_is_one_entry_and_one_opener(stripes):
    assert [len(part) for part in open_training("stripes")] == [40, 30]
    for eps in ("eps0", "eps1"):
        rep.main(["-d", "stripes", "-m", "stripes", "-o", eps, "-r", "cka", "--device", "cpu", "--quiet"])
    assert len(pd.read_csv("results/indices/stripes/indices_0.csv")) == 20
    scores = results.load_long_table("results").query("dataset == 'stripes' and eps == 1")
    assert scores[["model1", "model2"]].to_numpy().tolist() == [["vgg11", "resnet10"]]
    score = scores["score"].item()
    assert 0 < score < 1

    plots.main(["--only", "data_effect", "--quiet"])
    assert list((stripes / "figs").glob("*.png"))
    figures = [figure for _, figure in plots.FIGURES["data_effect"](Sources(stripes / "results"))]
    assert any(STRIPES.label in text.get_text() for axes in figures[0].axes for text in axes.get_xticklabels())

    module_of("scripts/report.py").main(["--quiet"])
    page = (stripes / "results/report.html").read_text()
    assert STRIPES.label in page and f"{score:.3f}" in page


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
