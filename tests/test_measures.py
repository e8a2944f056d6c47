"""Measures of representations: properties over the registry, closed forms, values by hand, edges."""

import math

import numpy as np
import oracles
import pytest
import torch
from oracles import related, rotation

from univ import measures
from univ.measures import (
    CARDS,
    MORE_REP_MEASURES,
    REP_MEASURES,
    REP_STATISTICS,
    Pair,
    StreamedPair,
    UndefinedScore,
    build,
    centering,
    search,
)
from univ.measures.base import full_precision
from univ.measures.centering import Center
from univ.measures.neighbors import joint_score, rank_score
from univ.measures.procrustes import nuclear_norm
from univ.measures.rtd import barcode_length, drawn_distances, scaled_distances
from univ.measures.search import FindNeighbors, Neighbors
from univ.measures.subsamples import Subsamples

KEYS = [*REP_MEASURES, *MORE_REP_MEASURES]
ORDER = torch.randperm(60, generator=torch.Generator().manual_seed(3))


def make(key, **settings):
    return CARDS[key].build({**oracles.SETTINGS, "batch": 40, **settings})


@pytest.fixture
def pair():
    return related()


# Properties


@pytest.mark.parametrize("key", KEYS)
def test_scores_are_as_the_card_says(key, pair):
    x, y = pair
    near, far = related(noise=0.1, q=12)[1], torch.randn(60, 12, generator=torch.Generator().manual_seed(5))
    measure, card = make(key), CARDS[key]
    for rep in pair:
        if card.self_score is not None:
            assert measure(rep, rep) == pytest.approx(card.self_score, abs=1e-6)
    assert (measure(x, y) == pytest.approx(measure(y, x), abs=1e-6)) == card.symmetric
    x = related(noise=0.1, q=12)[0]
    scores = [measure(x, other) for other in (x, near, far)]
    assert scores == sorted(scores, reverse=card.larger_is_closer)
    assert all(card.range[0] - 1e-6 <= score <= card.range[1] + 1e-6 for score in scores)


@pytest.mark.parametrize("key", KEYS)
def test_permuting_what_was_prepared_equals_preparing_permuted_images(key, pair):
    x, y = (rep.double() for rep in pair)
    measure = make(key)
    a, b = measure.prepare(x), measure.prepare(y)
    expected = measure(x, y[ORDER])
    permuted = b.permute(ORDER)
    assert measure.compare(a, permuted) == pytest.approx(expected, abs=1e-9)
    assert measure.compare(a, permuted.permute(ORDER.argsort())) == pytest.approx(measure(x, y), abs=1e-9)
    assert measure.compare(a, b) == pytest.approx(measure(x, y), abs=1e-9), "permuting changed the original"


@pytest.mark.parametrize("key", [key for key in KEYS if key != "linreg"])  # which splits the images
def test_order_of_images_does_not_matter(key, pair):
    x, y = (rep.double() for rep in pair)
    measure = make(key, batch=60)
    assert measure(x[ORDER], y[ORDER]) == pytest.approx(measure(x, y), abs=1e-6 if key == "rtd" else 1e-9)


TRANSFORMATIONS = {  # what a card can say that a measure does not see -> examples of it, on (N, D) float64
    "permutation": [lambda x: x.flip(1)],
    "orthogonal": [lambda x: x @ rotation(x.shape[1])],
    "scaling": [lambda x: 3.7 * x],
    "translation": [lambda x: x + torch.arange(x.shape[1])],
    "padding": [lambda x: torch.cat([x, torch.zeros(len(x), 1)], dim=1)],
    "linear": [
        lambda x: x * torch.linspace(0.2, 5, x.shape[1]),
        lambda x: x @ (torch.eye(x.shape[1]).double() + 0.1 * rotation(x.shape[1], 2)).tril(),
    ],
    "nothing": [lambda x: (x - x.mean(0)) * torch.linspace(0.2, 5, len(x))[:, None]],  # the images scaled
}


@pytest.mark.parametrize("change", TRANSFORMATIONS)
@pytest.mark.parametrize("key", KEYS)
def test_invariances_hold_and_others_fail(key, change, pair):
    x, y = (rep.double() for rep in pair)
    measure = make(key)
    changed = [score for f in TRANSFORMATIONS[change] for score in (measure(f(x), y), measure(x, f(y)))]
    same = changed == pytest.approx([measure(x, y)] * len(changed), abs=1e-8)
    assert same == (change in CARDS[key].invariances)


@pytest.mark.parametrize("key", ["proc", "jacc"])
def test_without_centring_translation_matters(key, pair):
    x, y = pair
    measure = make(key, center=False)
    assert measure(x + 3, y) != pytest.approx(measure(x, y), abs=1e-3)


# Neighbours against the slow definition; the scores are in test_measures_hard.py


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("function", ["cos_sim", "euc"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("k", [1, 7, 59])
def test_neighbors_agree_with_the_definition(k, center, function, published, pair):
    settings = {"function": function, "center": center, "published": published}
    same_neighbors(pair[0], oracles.neighbors(pair[0].numpy(), k, **settings), k, **settings)


def same_neighbors(x, expected, k, function="cos_sim", **settings):
    """Both searches find them, the one that keeps no order in some order."""
    assert FindNeighbors(k, function, **settings)(x).indices.tolist() == expected
    unordered = FindNeighbors(k, function, **settings, ordered=False)(x).indices
    assert unordered.sort(dim=1).values.tolist() == [sorted(found) for found in expected]


# Closed forms


def test_procrustes_of_orthogonal_column_spaces_is_two():
    basis = rotation(40)
    basis = torch.linalg.qr(basis - basis.mean(dim=0)).Q[:, :20]  # centred columns
    assert measures.procrustes(basis[:, :8], basis[:, 8:20]) == pytest.approx(2, abs=1e-9)


def test_mean_of_permuted_cka_is_zero_and_biased_cka_is_not():
    x, y = (rep.double() for rep in related(n=40, p=30, q=30))
    generator = torch.Generator().manual_seed(0)
    for unbiased in (True, False):
        measure = make("cka" if unbiased else "cka_biased")
        a, b = measure.prepare(x), measure.prepare(y)
        scores = [measure.compare(a, b.permute(torch.randperm(40, generator=generator))) for _ in range(300)]
        error = np.std(scores) / math.sqrt(len(scores))
        assert (abs(np.mean(scores)) < 4 * error) == unbiased


def test_gulp_of_uncorrelated_models_is_the_sum_of_their_ranks():
    basis = rotation(40)
    basis = torch.linalg.qr(basis - basis.mean(dim=0)).Q[:, :20]  # centred, uncorrelated columns
    x, y = basis[:, :8] @ rotation(8) * torch.arange(1, 9), basis[:, 8:20]
    assert measures.gulp(x, y) == pytest.approx(8 + 12)
    assert measures.gulp(torch.cat([x, x], dim=1), y) == pytest.approx(8 + 12), "repeated columns add no rank"


def test_shape_metric_of_maps_turns_channels_and_pads_space():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(10, 4, 3, 3, generator=generator).double()
    turned = torch.einsum("nchw,cd->ndhw", maps, rotation(4))
    assert measures.shape_distance(maps, turned) == pytest.approx(0, abs=1e-9)
    assert measures.shape_distance(maps.flip(3), turned) > 1, "positions are not turned"
    other = torch.randn(10, 6, 3, 3, generator=generator).double()
    for alpha in (0.5, 1):
        expected = oracles.shape(maps.numpy(), other.numpy(), alpha)
        assert measures.shape_distance(maps, other, alpha=alpha) == pytest.approx(expected, abs=1e-9)
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1))
    assert measures.shape_distance(maps, padded, center=False) == pytest.approx(0, abs=1e-7)  # sqrt of rounding
    alone = torch.zeros(10, 4, 5, 5).double()
    alone[:, :, 0, 0] = maps[:, :, 0, 0]  # nothing where the smaller maps are
    assert measures.shape_distance(maps, alone, center=False) == pytest.approx(math.pi / 2)


def test_small_angles_are_exact():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    x = torch.linalg.qr(x - x.mean(0)).Q
    y = torch.cat([x[:, :5], x[:, 5:] * math.cos(0.01)], dim=1)
    # the cosine is (5 + cos) / sqrt(6 (5 + cos^2))
    c = math.cos(0.01)
    expected = math.asin(math.sqrt(5 * (1 - c) ** 2 / 6 / (5 + c * c)))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-7)):
        assert measures.shape_distance(x.to(dtype), y.to(dtype)) == pytest.approx(expected, abs=tolerance)


def test_jaccard_of_all_other_images_is_one(pair):
    x, y = pair
    assert measures.jaccard(x, y, k=59) == 1


def test_published_euclidean_neighbors_contain_the_image_itself():
    x, y = (torch.randn(1000, 30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    # of k = 10, one neighbour is sure to be common: at least 1/19 = 0.053, and 0.004 by chance
    assert measures.jaccard(x, y, k=10, function="euc", published=True) == pytest.approx(0.056, abs=2e-3)
    assert measures.jaccard(x, y, k=10, function="euc") == pytest.approx(0.004, abs=2e-3)


def test_rtd_lower_triangle_at_infinity_leaves_h1_unchanged():
    r1, r2 = (scaled_distances(rep.double()).numpy() for rep in related(n=40))
    assert barcode_length(r1, r2) == pytest.approx(oracles.rtd_barcode(r1, r2), abs=1e-12)


def test_nuclear_norm_of_a_singular_matrix_is_as_exact_as_svd():
    flat = torch.randn(80, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steep = flat * 10.0 ** torch.linspace(0, -12, 60, dtype=torch.float64)
    power = flat * torch.arange(1, 61, dtype=torch.float64) ** -2
    low_rank = flat[:, :3] @ flat[:3]
    dead = torch.nn.functional.pad(flat, (0, 5, 3, 0))
    for matrix in (flat, flat.T, steep, power, low_rank, dead, torch.zeros(5, 4, dtype=torch.float64)):
        assert nuclear_norm(matrix) == pytest.approx(torch.linalg.svdvals(matrix).sum().item(), rel=1e-7)


# By hand


def test_cka_by_hand():
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    y = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    # K has ones at (0,3), (3,0); L at (0,2), (2,0): tr KL = 0, 1'K1 = 1'L1 = 2, 1'KL1 = K1.L1 = 1 (image 0)
    # HSIC(K,L) = [0 + 4/6 - 1] / 4 = -1/12; HSIC(K,K) = [2 + 4/6 - 2] / 4 = 1/6
    assert measures.cka(x, y) == pytest.approx(-0.5)


def test_procrustes_by_hand():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    y = torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    # |X|^2 = 2, |Y|^2 = 8, X'Y has the one singular value 4: 2 + 8 - 8 = 2; scaled to norm 1: 0
    assert measures.procrustes(x, y, normalize=False) == pytest.approx(2)
    assert measures.procrustes(x, y) == pytest.approx(0, abs=1e-9)


def test_rank_similarity_by_hand():
    a = Neighbors(torch.tensor([[1, 2], [0, 2], [0, 1]]))  # neighbours of images 0, 1, 2, nearest first
    b = Neighbors(torch.tensor([[2, 1], [0, 2], [0, 1]]))
    # image 0, order swapped: two terms 2 / ((1 + |1-2|) * (1 + 2)) = 1/3, over 1 + 1/2: 4/9; the others 1
    assert rank_score(Pair(a, b)) == pytest.approx((4 / 9 + 1 + 1) / 3)
    assert joint_score(Pair(a, b)) == pytest.approx((4 / 9 + 1 + 1) / 3)  # all neighbours are common
    c = Neighbors(torch.tensor([[1], [2], [0]]))
    d = Neighbors(torch.tensor([[2], [2], [1]]))
    assert rank_score(Pair(c, d)) == pytest.approx(1 / 3)  # images 0 and 2 share none


def test_neighbors_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    # squared distances: 0-1 and 0-2: 25 (a tie: the lower index), 0-3: 1, 1-2: 0, 1-3 and 2-3: 18
    assert FindNeighbors(3, "euc")(x).indices.tolist() == [[3, 1, 2], [2, 3, 0], [1, 3, 0], [0, 1, 2]]


def test_statistics_by_hand():
    x = torch.tensor([[3.0, 0.0], [3.0, 8.0]])
    # mean (3, 4), norm 5; cosines (3*3) / (3*5) = 0.6 and (9 + 32) / (sqrt(73) * 5)
    assert measures.magnitude(x) == pytest.approx(5)
    assert measures.concentricity(x) == pytest.approx((0.6 + 41 / (5 * math.sqrt(73))) / 2)


# Edges


@pytest.mark.parametrize("key", KEYS)
def test_input_is_not_changed_and_kinds_of_input_agree(key, pair):
    x, y = pair
    measure = make(key)
    expected = measure(x, y)
    before = x.clone(), y.clone()
    frozen = [rep.numpy().copy() for rep in pair]
    for array in frozen:
        array.flags.writeable = False
    assert measure(*frozen) == expected
    folded = y if key == "shape" else y.reshape(len(y), 3, 3)  # (N, ...) is flattened
    assert measure(x.clone().requires_grad_(), folded) == expected
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    half = x.half()
    assert measure(half, y) == pytest.approx(measure(half.float(), y), abs=1e-9)


@pytest.mark.parametrize("key", [*KEYS, *REP_STATISTICS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_input_is_an_error(key, value, pair):
    x, y = (rep.clone() for rep in pair)
    y[13, 2] = value
    with pytest.raises(ValueError, match=r"NaN or infinite values, first in row 13"):
        make(key)(x, y) if key in KEYS else REP_STATISTICS[key]()(y)


@pytest.mark.parametrize("key", KEYS)
def test_different_numbers_of_images_are_an_error(key, pair):
    with pytest.raises(ValueError, match="60 and 50"):
        make(key)(pair[0], pair[1][:50])


@pytest.mark.parametrize("k", [0, 60, 61])
def test_k_out_of_range_is_an_error(k, pair):
    with pytest.raises(ValueError, match=f"k={k} neighbours need k between 1 and .* = 59"):
        measures.jaccard(*pair, k=k)


def test_constant_representation(pair):
    x = pair[0]
    constant = torch.full((60, 5), 0.1)
    for measure in (measures.cka, measures.procrustes):
        with pytest.warns(UndefinedScore, match="not defined"):
            assert math.isnan(measure(x, constant))
    with pytest.raises(ValueError, match="nine tenths"):
        measures.rtd(x, constant)
    with pytest.raises(ValueError, match="constant"):
        measures.gulp(x, constant)
    with pytest.warns(UndefinedScore, match="norm 0"):
        assert math.isnan(measures.shape_distance(x, constant))
    assert measures.second_order_cosine(x, constant) == 0
    # all similarities tie at 0: each image's neighbours are the lowest indices
    assert FindNeighbors(2)(constant).indices.tolist() == [[1, 2], [0, 2]] + [[0, 1]] * 58
    with pytest.warns(UndefinedScore, match="mean representation is zero"):
        assert math.isnan(measures.concentricity(torch.zeros(4, 3)))


@pytest.mark.parametrize("function", ["cos_sim", "euc"])
@pytest.mark.parametrize("distinct", [1, 2, 30])
def test_duplicated_images_tie_by_index(distinct, function, pair, monkeypatch):
    monkeypatch.setattr(search, "_SPARE", 3)  # fewer spare candidates than images that tie
    x = pair[0][:distinct].repeat(60 // distinct, 1)
    same_neighbors(x, oracles.neighbors(x.numpy(), 9, function), 9, function)


@pytest.mark.parametrize("function", ["cos_sim", "euc"])
def test_search_in_blocks_and_in_rough_products_finds_the_same(function, pair, monkeypatch):
    expected = oracles.neighbors(pair[0].numpy(), 9, function)
    monkeypatch.setattr(search, "_BLOCK", 16)  # 60 images: four blocks, the last one shorter
    assert FindNeighbors(9, function)(pair[0]).indices.tolist() == expected
    exact = search.Space.search
    monkeypatch.setattr(search.Space, "search", lambda *args: exact(*args).bfloat16().float())
    assert FindNeighbors(9, function)(pair[0]).indices.tolist() == expected


def test_settings_out_of_range_are_errors(pair):
    x, y = pair
    with pytest.raises(ValueError, match="at least 4 images"):
        measures.cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="at least as many images as columns, got 60 images and 61"):
        measures.gulp(x, torch.randn(60, 61))
    with pytest.raises(ValueError, match="at least 0"):
        measures.gulp(x, y, gulp_lambda=-1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        measures.shape_distance(x, y, alpha=2)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\) or \(N, D\)"):
        measures.shape_distance(x, y.reshape(60, 3, 3))


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="choose from"):
        build(REP_MEASURES, ["ckaa"])
    with pytest.raises(ValueError, match="knn"):
        build(REP_MEASURES, ["cka"], knn=5)
    with pytest.raises(ValueError, match="unknown function"):
        FindNeighbors(5, "cosine")


def test_a_card_hands_the_measure_its_settings_by_their_names_in_records():
    options = {"knn": 5, "function": "euc", "batch": 40}
    assert CARDS["jacc"].settings(options) == {"knn": 5, "function": "euc"}
    assert CARDS["jacc"].build(options).prepare == FindNeighbors(5, "euc", ordered=False)
    assert CARDS["cka"].build(options).prepare == Center()


def test_equal_settings_make_equal_preparations():
    a, b, c = build(REP_MEASURES, ["jacc", "rank", "rank_jacc"], k=5)
    assert b.prepare == c.prepare != make("rank", knn=6).prepare
    assert b.prepare.covers(a.prepare), "rank needs the neighbours in order, Jaccard does not"
    assert not a.prepare.covers(b.prepare)
    assert not make("jacc", knn=6).prepare.covers(a.prepare)
    assert make("cka").prepare == make("proc").prepare != make("proc", center=False).prepare


def test_streaming_gives_the_same_scores(pair, tmp_path):
    files = []
    for name, rep in zip("xy", pair):
        np.save(tmp_path / f"{name}.npy", rep.numpy())
        files.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    for key in ("cka", "proc"):
        assert make(key, stream=True)(*files) == pytest.approx(make(key)(*pair), abs=1e-12)
    assert Center(stream=True)(pair[0]).rows.data_ptr() == pair[0].data_ptr()


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_streaming_converts_block_by_block(dtype, pair, monkeypatch):
    x, y = ((10 * rep).numpy().astype(dtype) for rep in pair)
    expected = measures.cka(x, y)
    monkeypatch.setattr(centering, "FEW_ROWS", 16)
    monkeypatch.setattr(centering, "BLOCK_ROWS", 16)
    assert Center(stream=True)(x).rows.dtype == torch.from_numpy(x).dtype
    assert measures.cka(x, y, stream=True) == pytest.approx(expected, abs=1e-7)
    x = x.astype(np.float32)
    x[13, 2] = math.nan
    with pytest.raises(ValueError, match="first in row 13"):
        measures.cka(x, y, stream=True)


@pytest.mark.parametrize("shape", oracles.SHAPES)
def test_one_pass_over_batches_gives_the_same_scores(shape):
    x, y = related(**oracles.SHAPES[shape])
    streamed = StreamedPair()
    for batch in torch.arange(len(x)).split(7):
        streamed.update(x[batch], y[batch].numpy())
    for settings in ({}, {"unbiased": False}):
        assert streamed.cka(**settings) == pytest.approx(measures.cka(x, y, **settings), abs=1e-6)
    for settings in ({}, {"normalize": False}):
        assert streamed.procrustes(**settings) == pytest.approx(
            measures.procrustes(x, y, **settings), rel=1e-6, abs=1e-6
        )


def test_batches_that_do_not_fit_are_errors(pair):
    x, y = pair
    streamed = StreamedPair()
    with pytest.raises(ValueError, match="at least one batch"):
        streamed.procrustes()
    with pytest.raises(ValueError, match="4 images, got 0"):
        streamed.cka()
    streamed.update(x[:3], y[:3])
    with pytest.raises(ValueError, match="4 images, got 3"):
        streamed.cka()
    with pytest.raises(ValueError, match="4 and 3"):
        streamed.update(x[:4], y[:3])
    with pytest.raises(ValueError, match=r"\[12, 9\] columns, got \[9, 9\]"):
        streamed.update(y, y)
    constant = StreamedPair()
    constant.update(x, torch.full((60, 2), 0.1))
    with pytest.warns(UndefinedScore):
        assert math.isnan(constant.procrustes())
    with pytest.warns(UndefinedScore):
        assert math.isnan(constant.cka())


def test_reduced_precision_switched_on_elsewhere_does_not_change_a_score(pair):
    x, y = pair
    expected = measures.cka(x, y)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert measures.cka(x, y) == expected
            with full_precision():
                assert (x.T @ x).dtype == torch.float32
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_rtd_draws_the_same_images_whatever_the_model():
    draw, other = (Subsamples(drawn_distances, batch=20, trials=3, seed=seed) for seed in (4, 5))
    images = draw.images(50)
    assert torch.equal(images, draw.images(50)) and not torch.equal(images, other.images(50))
    assert [len(set(trial.tolist())) for trial in images] == [20, 20, 20]
    assert draw.images(20).tolist() == [list(range(20))], "all images: one trial"


def test_rtd_tells_the_score_of_each_trial_and_is_reproducible(pair):
    measure = make("rtd", batch=20, trials=4)
    a, b = (measure.prepare(rep) for rep in pair)
    first = Pair(a, b)
    trials = measure.per_trial(first)
    assert len(trials) == 4
    assert trials.std() > 0
    assert measure.score(first) == trials.mean() == make("rtd", batch=20, trials=4, workers=1)(*pair)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("key", KEYS)
def test_cuda_gives_the_same_score(key, pair):
    x, y = pair
    assert make(key)(x.cuda(), y.cuda()) == pytest.approx(make(key)(x, y), abs=1e-6)
