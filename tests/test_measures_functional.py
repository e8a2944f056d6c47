"""Measures of predictions: properties over the registry, closed forms, values by hand, slow definitions."""

import math

import numpy as np
import oracles
import pytest
import torch

from univ import measures
from univ.measures import FUNC_MEASURES, FUNC_STATISTICS, MORE_FUNC_MEASURES, Outputs, UndefinedScore

REGISTRY = {**FUNC_MEASURES, **MORE_FUNC_MEASURES}
KEYS = list(REGISTRY)


def models(n=80, classes=5, count=2, seed=0):
    """Outputs of models that are right about two times in three, each in its own way."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    signal = 1.5 * torch.nn.functional.one_hot(labels, classes)
    return [Outputs(signal + torch.randn(n, classes, generator=generator), labels) for _ in range(count)]


def predictions(output):
    return np.asarray(output.logits).argmax(axis=1)


@pytest.mark.parametrize("key", KEYS)
def test_self_score_symmetry_and_sense(key):
    a, b = models()
    measure = REGISTRY[key]()
    if measure.self_score is not None:
        assert measure(a, a) == pytest.approx(measure.self_score, abs=1e-12)
    assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-12)
    near = Outputs(a.logits + 0.3 * (b.logits - a.logits), a.labels)
    assert (measure(a, near) > measure(a, b)) == measure.larger_is_closer


@pytest.mark.parametrize("key", KEYS)
def test_order_of_images_and_kind_of_input_do_not_matter(key):
    a, b = models()
    measure = REGISTRY[key]()
    expected = measure(a, b)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    shuffled = [Outputs(output.logits[order], output.labels[order]) for output in (a, b)]
    assert measure(*shuffled) == pytest.approx(expected, abs=1e-12)
    arrays = [Outputs(output.logits.numpy(), output.labels.numpy().astype(np.int32)) for output in (a, b)]
    assert measure(*arrays) == expected
    renamed = [
        Outputs(output.logits[:, [4, 2, 0, 1, 3]], torch.tensor([2, 3, 1, 4, 0])[output.labels]) for output in (a, b)
    ]
    assert measure(*renamed) == pytest.approx(expected, abs=1e-12), "classes in another order"
    shifted = [Outputs(output.logits + torch.arange(80)[:, None], output.labels) for output in (a, b)]
    assert measure(*shifted) == pytest.approx(expected, abs=1e-4), "a constant added to an image's logits"


@pytest.mark.parametrize("key", KEYS)
def test_only_predictions_count_where_only_they_should(key):
    a, b = models()
    sharper = Outputs(3 * b.logits, b.labels)
    measure = REGISTRY[key]()
    same = measure(a, sharper) == pytest.approx(measure(a, b), abs=1e-9)
    assert same == (key in {"dis", "norm", "kappa", "error_consistency"})


@pytest.mark.parametrize("key", KEYS)
def test_permuting_what_was_prepared(key):
    a, b = models()
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    measure = REGISTRY[key]()
    moved = Outputs(b.logits[order], b.labels[order])
    expected = measure(a, moved)
    assert measure.compare(measure.prepare(a), measure.prepare(b).permute(order)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_definition(seed):
    outputs = models(count=4, seed=seed)
    a, b = outputs[:2]
    pa, pb = predictions(a), predictions(b)
    expected = {
        "dis": oracles.disagreement(pa, pb),
        "norm": oracles.normalized_disagreement(pa, pb, a.labels.numpy()),
        "kappa": oracles.kappa(pa, pb, 5),
        "jsd": oracles.jsd(a.logits.numpy(), b.logits.numpy()),
        "churn": oracles.churn(a.logits.numpy(), b.logits.numpy(), 1),
        "error_consistency": oracles.error_consistency(pa, pb, a.labels.numpy()),
        "capa": oracles.capa(a.logits.numpy(), b.logits.numpy(), a.labels.numpy()),
    }
    assert set(expected) == set(KEYS)
    for key, value in expected.items():
        assert REGISTRY[key]()(a, b) == pytest.approx(value, abs=1e-12), key
    assert measures.churn(a.logits, b.logits, alpha=3) == pytest.approx(
        oracles.churn(a.logits.numpy(), b.logits.numpy(), 3), abs=1e-12
    )
    preds = [predictions(output) for output in outputs]
    assert FUNC_STATISTICS["amb"]()(outputs) == pytest.approx(oracles.ambiguity(preds), abs=1e-12)
    assert FUNC_STATISTICS["disc"]()(outputs) == pytest.approx(oracles.discrepancy(preds), abs=1e-12)


def test_jsd_of_disjoint_predictions_is_ln_2_even_where_float32_saturates():
    a = torch.tensor([[1000.0, 0.0], [200.0, -200.0]])
    assert measures.jsd(a, a.flip(1)) == pytest.approx(math.log(2), abs=1e-12)
    assert measures.jsd(a, a) == 0


def test_churn_of_sharp_confidence_is_disagreement():
    a, b = models()
    assert measures.churn(a.logits, b.logits, alpha=1e6) == pytest.approx(
        measures.disagreement(predictions(a), predictions(b)), abs=1e-9
    )


def test_kappa_by_hand():
    a, b = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    # observed agreement 3/4; by chance (1*1 + 2*1 + 1*2) / 16 = 5/16; (12/16 - 5/16) / (11/16)
    assert measures.kappa(a, b, num_classes=3) == pytest.approx(7 / 11)
    assert measures.kappa(a, b) == pytest.approx(7 / 11)


def test_disagreement_by_hand():
    labels = torch.tensor([0, 1, 2, 0])
    a, b = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 2, 2, 2])
    # a: 1 error, b: 2 errors, they differ twice: dis = 1/2, between |1/4 - 1/2| = 1/4 and 3/4: (1/4) / (1/2)
    assert measures.disagreement(a, b) == 0.5
    assert measures.normalized_disagreement(a, b, labels) == pytest.approx(0.5)
    # images 1 and 3 differ for some two of three; the third model differs from b on 3 of 4 images
    third = torch.tensor([0, 1, 1, 0])
    assert measures.ambiguity([a, b, third]) == 0.75
    assert measures.discrepancy([a, b, third]) == 0.75


def test_error_consistency_and_capa_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    a, b = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 1, 0])
    # right: 1 1 1 0 and 1 0 1 0: the same for 3 of 4; by chance 3/4 * 1/2 + 1/4 * 1/2 = 1/2; (1/4) / (1/2)
    assert measures.error_consistency(a, b, labels) == pytest.approx(0.5)
    # probabilities 3/4 and 1/4 for the label: c = (9 + 1)/16 = 5/8, p = q = 3/4, e = 9/16 + 1/16 = 5/8
    logits = torch.tensor([[math.log(3), 0.0]]).double()
    assert measures.capa(logits, logits, labels[:1]) == pytest.approx(0, abs=1e-12)
    # certain and wrong in the same way among three classes: c = 1, p = q = 0, e = 1/2
    wrong = torch.tensor([[0.0, 0.0, 1e3]]).double()
    assert measures.capa(wrong, wrong, labels[:1]) == pytest.approx(1)


def test_undefined_scores_say_why():
    same = torch.zeros(4, dtype=torch.long)
    with pytest.warns(UndefinedScore, match="same one class"):
        assert math.isnan(measures.kappa(same, same))
    with pytest.warns(UndefinedScore, match="leave no room"):
        assert math.isnan(measures.normalized_disagreement(same, same, same))
    with pytest.warns(UndefinedScore, match="always right"):
        assert math.isnan(measures.error_consistency(same, same, same))
    certain = torch.tensor([[1e3, 0.0]])
    with pytest.warns(UndefinedScore, match="always right"):
        assert math.isnan(measures.capa(certain, certain, torch.tensor([0])))


def test_wrong_input_is_an_error():
    a, b = models()
    for key in ("norm", "error_consistency", "capa"):
        with pytest.raises(ValueError, match="needs labels"):
            REGISTRY[key]()(a.logits, b.logits)
    with pytest.raises(ValueError, match="80 and 70"):
        measures.jsd(a.logits, b.logits[:70])
    for function in (measures.jsd, measures.churn):
        with pytest.raises(ValueError, match="same classes"):
            function(a.logits, b.logits[:, :4])
    broken = a.logits.clone()
    broken[5, 1] = math.nan
    for key in KEYS:
        with pytest.raises(ValueError, match="first in row 5"):
            REGISTRY[key]()(Outputs(broken, a.labels), b)
    with pytest.raises(ValueError, match="one column per class"):
        measures.jsd(a.logits[0], b.logits[0])
    with pytest.raises(ValueError, match="one class index per image"):
        measures.disagreement(a.logits, b.logits)
    with pytest.raises(ValueError, match="between 0 and 1"):
        measures.kappa(torch.tensor([0, 2]), torch.tensor([0, 1]), num_classes=2)
    with pytest.raises(ValueError, match="as many labels"):
        REGISTRY["norm"]()(Outputs(a.logits, a.labels[:3]), b)
    with pytest.raises(ValueError, match="at least two models"):
        measures.ambiguity([torch.tensor([0])])
    with pytest.raises(ValueError, match="same images"):
        measures.discrepancy([torch.tensor([0]), torch.tensor([0, 1])])
