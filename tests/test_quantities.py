"""Similarities, agreement bounds, what the figures list as missing, and the images of the grids."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_results import DIGITS_MODELS, write_inversions, write_probe_agreement, write_scores

from univ import results
from univ.data import open_images
from univ.data.indices import write_indices
from univ.show import quantities
from univ.show.quantities import agreement_bounds, classifier_and_probe_agreement, load_inversions


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_scores(folder)
    write_probe_agreement(folder)
    return folder


@pytest.fixture(scope="module")
def table(root):
    return results.load_long_table(root, settings=["knn"])


@pytest.mark.parametrize(
    ("measure", "score", "similarity"),
    [("cka", 0.3, 0.3), ("proc", 0.5, 0.75), ("rtd", 4.0, -4.0), ("dis", 0.1, 0.9), ("jsd", math.log(2), 0.0)],
)
def test_similarities_by_hand(measure, score, similarity):
    table = pd.DataFrame({"measure": [measure, "unknown"], "score": [score, 1.0]})
    assert quantities.with_similarity(table)["similarity"].tolist() == pytest.approx([similarity])


def test_agreement_bounds_by_hand():
    # two classes: independent errors agree where both are right or both wrong: 0.9 * 0.8 + 0.1 * 0.2
    lower, upper = agreement_bounds(0.8, 0.9, 2)
    assert lower == pytest.approx(0.74)
    # worsening 0.9 to 0.8 by flipping a share s: 0.9 (1 - s) + 0.1 s = 0.8, so s = 1/8
    assert upper == pytest.approx(7 / 8)
    # four classes: both right 0.72; both wrong, 0.02, and then on the same of three classes: 0.02 / 3
    assert agreement_bounds(0.9, 0.8, 4)[0] == pytest.approx(0.72 + 0.02 / 3)
    assert agreement_bounds(0.7, 0.7, 10)[1] == 1
    assert math.isnan(agreement_bounds(0.1, 0.05, 10)[1])


def test_bounds_hold_for_simulated_classifiers():
    generator = np.random.default_rng(0)
    n, num_classes = 200_000, 5

    def worsened(preds, share):
        other = (preds + generator.integers(1, num_classes, n)) % num_classes
        return np.where(generator.random(n) < share, other, preds)

    labels = generator.integers(0, num_classes, n)
    first, second = worsened(labels, 0.1), worsened(labels, 0.3)
    copy = worsened(first, 0.25)
    for side, other in enumerate((second, copy)):
        bound = agreement_bounds((first == labels).mean(), (other == labels).mean(), num_classes)[side]
        assert (first == other).mean() == pytest.approx(bound, abs=0.005)


def test_mean_bounds_average_over_pairs():
    about = {"num_classes": 2, "eps": 0.0, "dataset": "d", "exp": "0"}
    regular = [{"source": "", "model": m, "accuracy": a, "input": "standard"} for m, a in zip("abc", (0.9, 0.8, 0.8))]
    on_b = [row | {"source": "b", "input": "inverted"} for row in regular]
    table = quantities.mean_bounds(pd.DataFrame([row | about for row in regular + on_b])).set_index("input")
    assert table.loc["standard", "lower"] == pytest.approx((0.74 + 0.74 + 0.68) / 3)
    assert table.loc["inverted", "lower"] == pytest.approx((0.74 + 0.68) / 2)  # b with a, b with c


def test_missing_settings_are_listed(table):
    fewer = table[~((table["measure"] == "rtd") & (table["eps"] == 2.0) & (table["input"] == "inverted"))]
    absent = [f"{name}: no results" for name in quantities.studied()]
    assert quantities.missing(fewer, ["cka", "rtd"]) == [*absent, "digits, inverted: rtd at eps 2"]
    assert quantities.missing(table[:0], ["cka"])[0] == "imagenet: no results"


def test_one_k(table):
    assert set(quantities.one_k(table, 100)["knn"].dropna()) == {100}
    assert set(quantities.one_k(table, 7)["knn"].dropna()) == {10}
    assert len(quantities.pooled(table)) == 2 and not quantities.pooled(quantities.one_k(table, 10))
    published = table.assign(knn=np.nan)
    assert len(quantities.one_k(published, 100)) == len(published)


def test_classifiers_beside_probes(root, table):
    probes = results.load_probe_agreement(root)
    shown = classifier_and_probe_agreement(table, probes, "digits")
    sizes = shown.groupby("group", sort=False).size()
    assert sizes.tolist() == [6, 6, 24, 4]  # 4 models; 8 probes: 28 pairs, 4 of them on one model's representations
    assert list(sizes.index[:2]) == ["classifiers\neps 0", "classifiers\neps 2"]
    fewer = classifier_and_probe_agreement(table, probes[probes["arch_2"] == "resnet10"], "digits")
    assert fewer.groupby("group", sort=False).size().iloc[0] == 1  # only the probed pair of architectures
    unknown = classifier_and_probe_agreement(table, probes.assign(eps=math.nan), "digits")
    assert set(unknown["group"]) > {"probes on frozen\nrepresentations", "probes on one\nfrozen representation"}
    assert classifier_and_probe_agreement(table[:0], probes[:0], "digits").empty


# ------------------------------------------------------------------------------------------------- inverted images


def test_inversions_of_different_classes(tmp_path):
    write_inversions(tmp_path, eps=("eps0", "eps1", "eps2"))
    (tmp_path / "vgg11_eps2.pt").unlink()
    shown = load_inversions("digits", folder=tmp_path, rows=4)
    assert shown.targets.shape == (4, 3, 32, 32)
    assert set(shown.inverted) == {(m, e) for m in DIGITS_MODELS for e in (0.0, 2.0)} - {("vgg11", 2.0)}
    assert shown.missing == ["vgg11 at eps 2"]
    images = open_images("digits")
    where = [next(i for i in range(12) if torch.equal(images[i][0], target)) for target in shown.targets]
    assert len({int(images.labels[i]) for i in where}) == 4
    assert torch.equal(shown.seeds[0], images[111 - where[0]][0])


def test_inversions_by_index_files(tmp_path):
    write_inversions(tmp_path, models=["vgg11"], eps=["eps0"])
    (tmp_path / "vgg11_eps0.csv").unlink()
    assert "seeds unknown" in load_inversions("digits", folder=tmp_path).missing[0]
    write_indices(tmp_path / "target_indices.csv", torch.arange(12))
    write_indices(tmp_path / "seed_indices.csv", torch.arange(12).flip(0) + 100)
    shown = load_inversions("digits", folder=tmp_path, rows=20)
    assert len(shown.targets) == 12 and not shown.missing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table + 1, "other targets or seeds than resnet10_eps0.pt"),
        (lambda table: table[1:], "holds 12 images for 11 targets"),
    ],
)
def test_an_inversion_of_other_images_is_left_out(tmp_path, change, said):
    write_inversions(tmp_path, models=["resnet10", "vgg11"], eps=["eps0"])
    change(pd.read_csv(tmp_path / "vgg11_eps0.csv")).to_csv(tmp_path / "vgg11_eps0.csv", index=False)
    shown = load_inversions("digits", folder=tmp_path)
    assert set(shown.inverted) == {("resnet10", 0.0)}
    assert len(shown.missing) == 1 and "vgg11_eps0.pt" in shown.missing[0] and said in shown.missing[0]


def test_nothing_to_show(tmp_path):
    shown = load_inversions("digits", tmp_path / "missing")
    assert not shown.inverted and "no inverted images" in shown.missing[0]
    write_inversions(tmp_path, models=["vgg11"], eps=["eps0"])
    shown = load_inversions("cifar10", folder=tmp_path, data_path=tmp_path / "nowhere")
    assert not shown.inverted and shown.missing
    table = pd.read_csv(tmp_path / "vgg11_eps0.csv")
    (table + 10_000).to_csv(tmp_path / "vgg11_eps0.csv", index=False)
    assert "lies past the 360 images" in load_inversions("digits", folder=tmp_path).missing[0]
