"""Every score is within 1e-6 of the definition in float64, or refused: on plain inputs and where float32 loses digits.

One image far from the rest, steep spectra, models that are equal up to rotation or nearly so, very large and very
small values. Where float64 itself loses the definition, scores need only be finite.
"""

import math
import warnings
from functools import partial

import oracles
import pytest
import torch
from oracles import ORACLES, SETTINGS, SHAPES, related, rotation

from univ import measures
from univ.measures import (
    CARDS,
    FUNC_MEASURES,
    MORE_FUNC_MEASURES,
    MORE_REP_MEASURES,
    REP_MEASURES,
    REP_STATISTICS,
    Outputs,
    StreamedPair,
    UndefinedScore,
)

KEYS = [*REP_MEASURES, *MORE_REP_MEASURES]
NEEDS_ROWS = {"gulp"}  # as many images as columns


def far(distance, *, other=None, **settings):
    """Two views of which one image lies `distance` from the rest: in the first, or in both, the same or different."""
    x, y = related(**settings)
    x[3] += distance
    if other is not None:
        y[other] += distance
    return x, y


def spectrum(power, n=60, p=20):
    """Two noisy views whose singular values fall as i^power."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=generator).double()
    y = x + 0.5 * torch.randn(n, p, generator=generator)
    scales = torch.arange(1, p + 1).double() ** power
    return tuple(((view * scales) @ rotation(p, seed)).float() for seed, view in enumerate((x, y)))


def turned(x):
    """A view, and itself rotated, in float32."""
    return x, (x.double() @ rotation(x.shape[1], 9)).float()


def near(distance):
    x = related()[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
    return x, x + distance * noise


def scaled(scale):
    x, y = related()
    return scale * x, y


HARD = {
    **{name: partial(related, **shape) for name, shape in SHAPES.items()},
    **{f"one image {d:g} away": partial(far, d) for d in (100, 1e4, 1e5)},
    **{f"the same image {d:g} away in both": partial(far, d, other=3) for d in (100, 1e4, 1e5)},
    **{f"different images {d:g} away": partial(far, d, other=40) for d in (1e4, 1e5)},
    **{f"wide, one image {d:g} away": partial(far, d, n=20, p=45, q=31) for d in (1e4, 1e5)},
    **{f"spectrum i^{power}": partial(spectrum, power) for power in (-0.5, -1, -1.5, -2)},
    **{f"wide, spectrum i^{power}": partial(spectrum, power, 30, 200) for power in (-0.5, -2)},
    **{f"rotated, spectrum i^{power}": partial(turned, spectrum(power)[0]) for power in (-0.5, -1, -2)},
    **{f"{d:g} apart": partial(near, d) for d in (1e-2, 1e-4, 1e-6)},
    **{f"values of {scale:g}": partial(scaled, scale) for scale in (1e-30, 1e-20, 1e20, 1e30)},
}


def test_every_measure_has_a_slow_definition():
    assert set(ORACLES) == set(CARDS)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("key", KEYS)
def test_agrees_with_the_definition(key, case):
    x, y = HARD[case]()
    if key in NEEDS_ROWS and len(x) < x.shape[1]:
        pytest.skip("not defined for fewer images than columns")
    score = CARDS[key].build(SETTINGS)(x, y)
    assert score == pytest.approx(ORACLES[key](x.numpy(), y.numpy()), abs=1e-6, rel=1e-6)


LAMBDAS = [{"gulp_lambda": value} for value in (1e-12, 1e-6, 1e-3, 1)]
SHAPES_OF = [{"alpha": alpha, "center": center} for alpha in (0, 0.3, 1) for center in (True, False)]
OTHER_SETTINGS = [
    ("gulp", LAMBDAS, ["tall", "low rank", "spectrum i^-2", "the same image 10000 away in both", "0.01 apart"]),
    ("shape", SHAPES_OF[::2], ["0.01 apart", "0.0001 apart", "1e-06 apart", "rotated, spectrum i^-1"]),
    ("shape", SHAPES_OF, ["tall"]),
    ("cos", [{"center": False}], ["tall"]),
    ("proc", [{"center": False}, {"normalize": False}, {"center": False, "normalize": False}], ["tall"]),
]


@pytest.mark.parametrize(
    ("key", "settings", "case"),
    [(key, one, case) for key, settings, cases in OTHER_SETTINGS for one in settings for case in cases],
)
def test_other_settings_agree_with_the_definition(key, settings, case):
    x, y = HARD[case]()
    expected = ORACLES[key](x.numpy(), y.numpy(), **settings)
    assert CARDS[key].make(**settings)(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scale", [1e8, 1e15, 1e30])
@pytest.mark.parametrize("other", [None, 3, 40])
def test_a_score_of_finite_input_is_finite_or_says_why(key, scale, other):
    for x, y in (far(scale, other=other), (related()[0] * scale, related()[1] / scale)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                score = CARDS[key].build(SETTINGS)(x, y)
            except ValueError as error:  # RSA: all columns of the far image round to one number
                assert "not defined" in str(error)
                continue
        assert math.isfinite(score) or any(issubclass(warning.category, UndefinedScore) for warning in caught)
        assert not [warning for warning in caught if issubclass(warning.category, RuntimeWarning)]


def test_float64_values_beyond_its_range_are_an_error():
    x, y = (rep.double() for rep in related())
    with pytest.raises(ValueError, match="scale it down"):
        measures.cka(x * 1e80, y)
    assert measures.cka(x * 1e50, y) == pytest.approx(measures.cka(x, y), abs=1e-12)


@pytest.mark.parametrize("distance", [1e8, 1e20])
@pytest.mark.parametrize("other", [None, 3, 40])
@pytest.mark.parametrize("key", ["cka", "cka_rbf"])
def test_kernels_do_not_care_how_far_an_image_is(key, other, distance):
    x, y = far(distance, other=other)
    expected = ORACLES[key](x.numpy(), y.numpy())
    assert CARDS[key].make()(x, y) == pytest.approx(expected, abs=1e-6)
    x, y = (rep.flip(1).double().flip(1).numpy() for rep in (x, y))
    assert CARDS[key].make()(x, y) == pytest.approx(expected, abs=1e-6)


def test_cka_of_a_far_image_streams_and_permutes():
    x, y = far(1e5, other=40)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    expected = oracles.cka(x.numpy(), y[order].numpy())
    for stream in (False, True):
        measure = measures.REP_MEASURES["cka"](stream=stream)
        a, b = measure.prepare(x), measure.prepare(y)
        assert measure.compare(a, b.permute(order)) == pytest.approx(expected, abs=1e-6)


def test_rbf_cka_of_two_distant_groups_of_images():
    """The median distance lies within the larger group, and the distance of the groups would swallow it."""
    x, y = related()
    x[:15] += 1e4
    assert measures.rbf_cka(x, y) == pytest.approx(oracles.rbf_cka(x.numpy(), y.numpy()), abs=1e-6)


@pytest.mark.parametrize("power", [0, -1, -2])
@pytest.mark.parametrize("width", [9, 12, 33, 64, 128, 300, 512, 1024])
def test_gulp_of_a_model_with_itself_is_zero(width, power):
    n = width + 40 if width < 1024 else 1100
    scales = torch.arange(1, width + 1).float() ** power
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(width)) * scales + 0.7
    for gulp_lambda in (0, 1e-3):
        assert measures.gulp(x, x, gulp_lambda=gulp_lambda) < 1e-9
    if power > -2:  # else as large as the smallest columns are their rotation's roundings
        assert measures.gulp(*turned(x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("key", REP_STATISTICS)
@pytest.mark.parametrize("case", ["tall", "one image 100000 away", "values of 1e-30", "values of 1e+30"])
def test_statistics_agree_with_the_definition(key, case):
    x, _ = HARD[case]()
    assert REP_STATISTICS[key]()(x) == pytest.approx(ORACLES[key](x.numpy()), rel=1e-6)


@pytest.mark.parametrize("key", [*FUNC_MEASURES, *MORE_FUNC_MEASURES])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_predictions_from_extreme_logits(key, scale):
    a, b = (Outputs(scale * output.logits, output.labels) for output in oracles.outputs())
    assert math.isfinite(CARDS[key].make()(a, b))


@pytest.mark.parametrize("distance", [100, 1e4, 1e8])
def test_cka_from_one_pass_is_right_or_says_why_not(distance):
    x, y = far(distance, other=40)
    streamed = StreamedPair()
    for batch in torch.arange(60).split(7):
        streamed.update(x[batch], y[batch])
    if distance < 1e8:
        assert streamed.cka() == pytest.approx(oracles.cka(x.numpy(), y.numpy()), abs=1e-6)
    else:
        with pytest.warns(UndefinedScore, match=r"cka\(x, y\) can tell"):
            assert math.isnan(streamed.cka())
