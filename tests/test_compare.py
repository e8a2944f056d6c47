"""Drivers: tables by model name, shared work, baselines, failures by name, subgroups by agreement."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import oracles
import pytest
import scipy.stats
import torch

from univ import compare, measures
from univ.compare import subgroup_scores, uncertainty
from univ.measures import (
    FUNC_MEASURES,
    FUNC_STATISTICS,
    MORE_FUNC_MEASURES,
    MORE_REP_MEASURES,
    REP_MEASURES,
    REP_STATISTICS,
    Outputs,
    build,
)

NAMES = ["vgg", "resnet", "densenet"]
pairwise, rowwise, stir, subgroups = (
    functools.partial(driver, quiet=True)
    for driver in (compare.pairwise, compare.rowwise, compare.stir, compare.subgroups)
)


def representations(n=50, seed=0, names=NAMES):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 8, generator=generator)
    return {
        name: points @ torch.randn(8, 10 + i, generator=generator) + 0.3 * torch.randn(n, 10 + i, generator=generator)
        for i, name in enumerate(names)
    }


def make(*keys, **settings):
    return build({**REP_STATISTICS, **REP_MEASURES}, keys, k=5, **settings)


class CountingReps(dict):
    """Counts how often representations are read."""

    reads = 0

    def __getitem__(self, name):
        self.reads += 1
        return super().__getitem__(name)


def test_pairwise_scores_every_pair_as_the_functions_do():
    reps = representations()
    found = pairwise(reps, make("cka", "proc", "jacc", "mag"))
    for name, function in {"cka": measures.cka, "proc": measures.procrustes}.items():
        scores = found[name].scores
        assert list(scores.index) == list(scores.columns) == NAMES
        for a, b in itertools.combinations(NAMES, 2):
            assert scores.loc[a, b] == scores.loc[b, a] == pytest.approx(function(reps[a], reps[b]), abs=1e-12)
        assert (np.diag(scores) == found[name].measure.self_score).all()
    assert found["mag"].scores.index.tolist() == [0]
    assert found["mag"].scores.at[0, "vgg"] == pytest.approx(measures.magnitude(reps["vgg"]))


def test_a_representation_is_read_once_per_preparation_and_finished_measures_are_reported_at_once():
    reps = CountingReps(representations())
    order = []
    pairwise(reps, make("cka", "jacc", "proc", "rank"), on_result=lambda each: order.append((each.name, reps.reads)))
    assert order == [("cka", 3), ("proc", 3), ("jacc", 6), ("rank", 6)]


def test_permutation_baseline():
    reps = representations()
    found = pairwise(reps, make("cka", "jacc"), permutations=4, seed=1)
    alone = pairwise({name: reps[name] for name in NAMES[:2]}, make("cka"), permutations=4, seed=1)
    cka = found["cka"]
    assert all(len(cell) == 4 for cell in cka.permuted.to_numpy().flatten())
    assert cka.permuted.at["vgg", "resnet"] == alone["cka"].permuted.at["vgg", "resnet"], "depends on the pair alone"
    assert cka.permuted.at["vgg", "resnet"] == cka.permuted.at["resnet", "vgg"]
    assert cka.baseline.at["vgg", "vgg"] == pytest.approx(np.mean(cka.permuted.at["vgg", "vgg"]))
    assert abs(cka.baseline.at["vgg", "vgg"]) < 0.2
    assert cka.scores.at["vgg", "resnet"] == pytest.approx(measures.cka(reps["vgg"], reps["resnet"]))
    generator = torch.Generator().manual_seed(1)
    first = torch.randperm(50, generator=generator)
    expected = measures.cka(reps["vgg"], reps["resnet"][first])
    assert cka.permuted.at["vgg", "resnet"][0] == pytest.approx(expected, abs=1e-7)


def test_spread_over_trials_is_reported():
    found = pairwise(representations(), make("rtd", batch=20, trials=3))["rtd"]
    assert (found.spread.to_numpy()[np.triu_indices(3, 1)] > 0).all()
    assert (np.diag(found.spread) == 0).all()
    assert found.spread.equals(found.spread.T)


def test_rowwise_columns_are_the_models_whose_images_were_used():
    on_images_of = {source: representations(seed=i) for i, source in enumerate(NAMES)}
    asked = []

    found = rowwise(NAMES, lambda source: asked.append(source) or on_images_of[source], make("cka", "jacc", "mag"))
    assert asked == NAMES
    scores = found["cka"].scores
    for source, other in itertools.permutations(NAMES, 2):
        reps = on_images_of[source]
        assert scores.loc[other, source] == pytest.approx(measures.cka(reps[source], reps[other]), abs=1e-12)
        assert found["mag"].scores.loc[other, source] == pytest.approx(measures.magnitude(reps[other]))
    assert scores.loc["vgg", "resnet"] != scores.loc["resnet", "vgg"]
    assert (np.diag(scores) == 1).all()


def test_stir_compares_a_model_with_itself_on_targets_and_on_inverted_images():
    targets = representations()
    inverted_through = {source: representations(seed=i + 1) for i, source in enumerate(NAMES)}
    inverted_through["vgg"]["vgg"] = 2 * targets["vgg"]  # perfect inversion
    found = stir(targets, inverted_through.__getitem__)
    assert found.name == "stir"
    assert found.scores.loc["vgg", "vgg"] == pytest.approx(1)
    expected = measures.cka(targets["resnet"], inverted_through["vgg"]["resnet"])
    assert found.scores.loc["resnet", "vgg"] == pytest.approx(expected, abs=1e-12)
    short = stir(targets, lambda source: representations(40))
    assert short.failure.startswith("vgg on the images of vgg: a comparison needs the same images")


# Uncertainty


def test_p_values_and_calibrated_scores_by_hand():
    null = np.array([*range(18), 30.0])
    assert uncertainty.p_value(40, null) == 1 / 20, "closer than every permutation"
    assert uncertainty.p_value(16, null) == 4 / 20, "16, 17 and 30 are as close, and itself"
    assert uncertainty.calibrated(40, null, 100, 0.95) == (40 - 30) / (100 - 30)  # the 19th of 20: ceil(0.95 * 20)
    assert uncertainty.calibrated(20, null, 100, 0.95) == 0


def test_p_values_and_calibrated_scores_are_of_each_pair():
    found = pairwise(representations(), make("cka", "proc"), permutations=19)
    for name, sign in (("cka", 1), ("proc", -1)):
        comparison, cell = found[name], ("vgg", "resnet")
        null, best = np.array(comparison.permuted.at[cell]), comparison.measure.self_score
        expected = uncertainty.calibrated(sign * comparison.scores.at[cell], sign * null, sign * best, 0.95)
        assert comparison.calibrated().at[cell] == expected and 0 < expected < 1
        assert comparison.p_values.at[cell] == 1 / 20
        assert np.isnan(np.diag(comparison.p_values)).all()
    assert pairwise(representations(), make("cka"))["cka"].p_values is None
    linear = build(MORE_REP_MEASURES, ["linreg"])
    with pytest.raises(ValueError, match="no fixed score"):
        pairwise(representations(), linear, permutations=3)["linreg"].calibrated()


@pytest.mark.parametrize("k", [10, 19, 99])
def test_exchangeable_scores_are_calibrated_above_zero_in_at_most_5_percent(k):
    """Of 1000 draws of a score and its null; with a quantile of the null alone it is 12 % at k = 10."""
    draws = 0.1 * np.random.default_rng(0).normal(size=(1000, k + 1))
    calibrated = np.array([uncertainty.calibrated(score, null, 1.0, 0.95) for score, *null in draws])
    assert (calibrated >= 0).all() and (calibrated > 0).sum() <= 50 + 3 * math.sqrt(1000 * 0.05 * 0.95)


def test_jackknife_groups_are_even_and_hold_each_image_once():
    left_out = torch.stack([~keep for keep in uncertainty.jackknife_masks(381, seed=0)]).int()
    assert set(left_out.sum(dim=1).tolist()) == {19, 20} and (left_out.sum(dim=0) == 1).all()


@dataclasses.dataclass(frozen=True)
class Broken(measures.Preparation):
    """A preparation that raises an error."""

    error: Exception

    def prepare(self, rep):
        raise self.error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has a"), MemoryError()]
)
@pytest.mark.parametrize("where", ["prepare", "score"])
def test_a_measure_without_memory_is_reported_and_the_others_go_on(error, where):
    broken = Broken(error)
    cka, jacc = make("cka", "jacc")
    cka = dataclasses.replace(cka, **{where: broken if where == "prepare" else broken.prepare})
    found = pairwise(representations(), [cka, jacc], permutations=1)
    assert "out of memory: compare fewer images" in found["cka"].failure
    assert "GPU 0" not in found["cka"].failure
    assert found["jacc"].failure is None


def test_intervals_hold_the_score_and_grow_with_the_level():
    measures_ = make("cka", "jacc", "mag", "rtd", batch=20, trials=4)
    at95 = pairwise(representations(), measures_, ci=0.95)
    at50 = pairwise(representations(), measures_, ci=0.5)
    for name, wide in at95.items():
        narrow = at50[name]
        cells = [(0, "vgg")] if name == "mag" else [("vgg", "resnet"), ("resnet", "vgg")]
        for cell in cells:
            ends = [table.at[cell] for table in (wide.low, narrow.low, wide.scores, narrow.high, wide.high)]
            assert sorted(set(ends)) == ends
    assert (np.diag(at95["cka"].low) == 1).all()
    assert pairwise(representations(), measures_)["cka"].low is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        pairwise(representations(), measures_, ci=95)


def test_jackknife_of_a_mean_is_its_standard_error():
    """`mag` of one column is the absolute mean: leaving one image out gives the textbook standard error."""
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found = pairwise({"model": x}, make("mag"), ci=0.95)["mag"]
    half = scipy.stats.t.ppf(0.975, 19) * x.std().item() / math.sqrt(20)
    assert found.low.at[0, "model"] == pytest.approx(x.mean().item() - half)
    assert found.high.at[0, "model"] == pytest.approx(x.mean().item() + half)


def test_intervals_of_predictions_and_of_inverted_images():
    registry = {**FUNC_MEASURES, **MORE_FUNC_MEASURES, **FUNC_STATISTICS}
    found = pairwise(outputs(400), build(registry, registry), ci=0.95)
    disc = found.pop("disc")
    assert disc.low.isna().all(axis=None) and disc.notes == ["no confidence intervals: disc is a maximum over pairs"]
    for name, comparison in found.items():
        cell = ("vgg", "resnet") if name in {**FUNC_MEASURES, **MORE_FUNC_MEASURES} else (0, name)
        assert comparison.low.at[cell] <= comparison.scores.at[cell] <= comparison.high.at[cell], name
        assert comparison.low.at[cell] < comparison.high.at[cell]
    for name, cell in (("dis", ("vgg", "resnet")), ("amb", (0, "amb"))):
        of_share = found[name]
        count = round(400 * of_share.scores.at[cell])
        interval = scipy.stats.binomtest(count, 400).proportion_ci(0.95, method="wilson")
        assert (of_share.low.at[cell], of_share.high.at[cell]) == pytest.approx((interval.low, interval.high))
    rows = rowwise(NAMES, lambda source: representations(seed=len(source)), make("cka", "mag"), ci=0.9)
    assert (rows["cka"].low <= rows["cka"].scores).all().all()
    assert (rows["mag"].low < rows["mag"].high).all().all()


def test_intervals_of_trials_that_share_images_are_wider():
    found = pairwise(representations(60), make("rtd", batch=20, trials=5), ci=0.95)["rtd"]
    spread, score = found.spread.at["vgg", "resnet"], found.scores.at["vgg", "resnet"]
    half = scipy.stats.t.ppf(0.975, 4) * spread * math.sqrt(1 / 5 + 20 / 40)
    assert (found.low.at["vgg", "resnet"], found.high.at["vgg", "resnet"]) == pytest.approx(
        (score - half, score + half)
    )
    one = pairwise(representations(20), make("rtd", batch=20, trials=5), ci=0.95)["rtd"]
    assert math.isnan(one.low.at["vgg", "resnet"]) and one.notes == ["no confidence intervals: 20 images are one trial"]


def test_no_interval_says_why():
    found = pairwise(representations(21), build(REP_MEASURES, ["jacc"], k=20), ci=0.95)["jacc"]
    assert found.failure is None
    assert found.scores.at["vgg", "resnet"] == 1
    assert math.isnan(found.low.at["vgg", "resnet"])
    assert "no confidence intervals: without a group of images, vgg: k=20" in found.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["cka", "proc", "jacc", "dis", "kappa"])
def test_coverage_of_95_percent_intervals(key):
    """Of intervals from samples of 300 images, the share that holds the score of 20 000."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 8, generator=generator) for _ in range(2)]

    def sample(n):
        points = torch.randn(n, 4, generator=generator)
        return {
            name: points @ weights + 0.8 * torch.randn(n, 8, generator=generator)
            for name, weights in zip(("a", "b"), maps)
        }

    measure = build({**REP_MEASURES, **FUNC_MEASURES}, [key], k=15)[0]
    if key == "jacc":  # its expectation depends on N: the truth is the mean over samples of that size
        truth = np.mean([pairwise(sample(300), [measure])[key].scores.at["a", "b"] for _ in range(100)])
    else:
        truth = pairwise(sample(20_000), [measure])[key].scores.at["a", "b"]
    hits = 0
    for _ in range(100):
        found = pairwise(sample(300), [measure], ci=0.95)[key]
        hits += found.low.at["a", "b"] <= truth <= found.high.at["a", "b"]
    assert hits >= 88  # jacc covers 99 %: each group left out also moves the k-th neighbours of the images that stay


def outputs(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, 4)
    return {name: Outputs(logits + torch.randn(n, 4, generator=generator), labels) for name in NAMES}


def test_functional_measures_and_statistics_of_the_set():
    models = outputs()
    registry = {**FUNC_MEASURES, **FUNC_STATISTICS}
    found = pairwise(models, build(registry, registry), permutations=2)
    preds = {name: output.logits.argmax(1) for name, output in models.items()}
    assert found["dis"].scores.at["vgg", "resnet"] == measures.disagreement(preds["vgg"], preds["resnet"])
    assert found["amb"].scores.shape == found["disc"].scores.shape == (1, 1)
    assert found["amb"].scores.at[0, "amb"] == measures.ambiguity(list(preds.values()))
    assert found["disc"].scores.at[0, "disc"] == found["dis"].scores.max().max()
    rows = rowwise(NAMES, lambda source: outputs(seed=len(source)), build(registry, registry))
    assert rows["amb"].scores.index.tolist() == [0]
    assert list(rows["amb"].scores.columns) == NAMES
    assert rows["amb"].scores.at[0, "vgg"] == found["amb"].measure(list(outputs(seed=3).values()))
    assert rows["kappa"].scores.notna().all().all()


def test_a_failing_measure_is_reported_with_the_model_and_the_rest_go_on():
    reps = representations()
    found = pairwise(reps, build(REP_MEASURES, ["jacc", "cka"], k=50))
    assert found["jacc"].failure.startswith("vgg: k=50 neighbours")
    assert found["cka"].failure is None
    reps["resnet"] = reps["resnet"].clone()
    reps["resnet"][4, 0] = math.nan
    found = pairwise(reps, make("cka", "jacc", "mag", "con"))
    assert all(comparison.failure.startswith("resnet: the representation holds NaN") for comparison in found.values())
    found = rowwise(NAMES, lambda source: reps, make("cka"))
    assert found["cka"].failure.startswith("resnet on the images of vgg: ")
    short = {**representations(), "resnet": representations(40)["resnet"]}
    failure = pairwise(short, make("cka"))["cka"].failure
    assert "vgg and resnet: a comparison needs the same images" in failure


def test_an_undefined_score_is_nan_with_a_note():
    reps = {**representations(), "resnet": torch.ones(50, 3)}
    found = pairwise(reps, make("cka", "proc"))
    assert math.isnan(found["cka"].scores.at["vgg", "resnet"])
    assert not math.isnan(found["cka"].scores.at["vgg", "densenet"])
    assert found["cka"].notes[0].startswith("vgg and resnet: CKA is not defined")
    assert found["cka"].failure is None


def test_a_missing_model_and_a_measure_asked_for_twice_are_errors():
    with pytest.raises(ValueError, match="the images of vgg lack the models densenet"):
        rowwise(NAMES, lambda source: representations(names=NAMES[:2]), make("cka"))
    with pytest.raises(ValueError, match="once"):
        pairwise(representations(), make("cka", "cka"))


# Subgroups


def agreeing(n=200, share=0.7, seed=0):
    """Representations, and predictions of which a share agrees between any two of three models."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randint(10, (n,), generator=generator)
    own = torch.rand(n, generator=generator) > share
    return representations(n), {name: torch.where(own, i, common + 10) for i, name in enumerate(NAMES)}


def test_subgroups_score_each_group_by_itself():
    reps, preds = agreeing()
    table = subgroups(reps, preds, ["cka", "proc", "jacc"], size_matched=False)
    assert list(table.columns) == subgroup_scores.COLUMNS
    assert len(table) == 3 * 2 * (1 + 1 + 6)
    agree = preds["vgg"] == preds["resnet"]
    pair = table[(table.model1 == "vgg") & (table.model2 == "resnet")]
    for kind, images in {"agree": agree, "disagree": ~agree}.items():
        group = pair[pair.pred_type == kind]
        x, y = reps["vgg"][images], reps["resnet"][images]
        assert set(group.n) == set(group.n_group) == {len(x)} and group.spread.isna().all()
        assert group[group.metric == "cka"].score.item() == pytest.approx(oracles.cka(x.numpy(), y.numpy()), abs=1e-6)
        assert group[group.metric == "proc"].score.item() == pytest.approx(measures.procrustes(x, y), abs=1e-12)
        assert group[group.k == 10].score.item() == pytest.approx(measures.jaccard(x, y, k=10, function="euc"))
        tenth = measures.jaccard(x, y, k=len(x) // 10, function="euc")
        assert group[group.perc_k == 10].score.item() == pytest.approx(tenth)
    too_small = pair[(pair.pred_type == "disagree") & (pair.k == 100)]
    assert too_small.score.isna().all()
    assert "neighbours need k between 1 and" in too_small.note.item()
    assert pair[pair.perc_k == 0.5].note.str.contains("k=0").any()


def test_subgroups_published_adds_the_hsics_of_agreeing_images():
    reps, preds = agreeing()
    table = subgroups(reps, preds, ["cka", "jacc"], published=True)
    pair = table[(table.model1 == "vgg") & (table.model2 == "resnet")]
    agree = preds["vgg"] == preds["resnet"]
    hsics = np.zeros(3)
    for kind, images in {"agree": agree, "disagree": ~agree}.items():
        x, y = (reps[name][images].double().numpy() for name in ("vgg", "resnet"))
        k, l = x @ x.T, y @ y.T  # noqa: E741
        hsics += [oracles.hsic1(k, l), oracles.hsic1(k, k), oracles.hsic1(l, l)]
        score = pair[(pair.metric == "cka") & (pair.pred_type == kind)].score.item()
        assert score == pytest.approx(hsics[0] / math.sqrt(hsics[1] * hsics[2]), abs=1e-6)
        neighbors = oracles.jaccard(x, y, 10, function="euc", published=True)
        assert pair[(pair.k == 10) & (pair.pred_type == kind)].score.item() == pytest.approx(neighbors)


def test_groups_have_the_size_of_the_smaller_by_default():
    reps, preds = agreeing()
    table = subgroups(reps, preds, ["jacc", "cka"])
    assert (table.n == table.groupby(["model1", "model2"]).n_group.transform("min")).all()
    assert table.groupby(["model1", "model2", "metric"]).n_group.nunique().eq(2).all()
    assert table.groupby(["model1", "model2"]).n.nunique().eq(1).all()
    smaller = table[(table.pred_type == "disagree") & (table.k == 10)]
    larger = table[(table.pred_type == "agree") & (table.k == 10)]
    assert smaller.spread.abs().max() < 1e-12, "the smaller group is always the same images"
    assert (larger.spread > 0).all()
    whole = subgroups(reps, preds, ["jacc"], size_matched=False)
    whole = whole[(whole.pred_type == "disagree") & (whole.k == 10)]
    assert smaller.score.to_numpy() == pytest.approx(whole.score.to_numpy(), abs=1e-12)
    assert table.equals(subgroups(reps, preds, ["jacc", "cka"], size_matched=True))


def test_subgroups_too_small_say_why():
    reps, preds = agreeing(share=1.0)
    table = subgroups(reps, preds, ["cka", "proc", "jacc", "rtd"], workers=1)
    empty = table[table.pred_type == "disagree"]
    assert (empty.n == 0).all()
    assert empty.score.isna().all()
    assert (empty.note != "").all()
    assert table.score.isna().all() and (table.n == 0).all(), "cut to no image, as the smaller group has none"
    table = subgroups(reps, preds, ["cka", "proc", "jacc", "rtd"], workers=1, size_matched=False)
    assert table[table.pred_type == "agree"].score.notna().sum() == 3 * (3 + 6)


def test_subgroups_of_some_pairs_and_errors():
    reps, preds = agreeing()
    pairs = [("vgg", "densenet"), ("resnet", "densenet")]
    table = subgroups(reps, preds, ["cka", "proc"], pairs=pairs)
    assert len(table) == 2 * 4 and set(zip(table.model1, table.model2)) == set(pairs)
    assert subgroups(reps, preds, ["proc"], pairs=[]).empty
    with pytest.raises(ValueError, match="choose from cka, proc, rtd, jacc"):
        subgroups(reps, preds, ["mag"])
    with pytest.raises(ValueError, match="same images"):
        subgroups(reps, {name: pred[:-1] for name, pred in preds.items()}, ["cka"])
