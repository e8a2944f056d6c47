"""Measures of predictions: properties over the registry, slow definitions, closed forms, values by hand."""

import math
from functools import partial

import numpy as np
import oracles
import pytest
import torch
from oracles import ORACLES, outputs

from univ import measures
from univ.measures import CARDS, FUNC_MEASURES, FUNC_STATISTICS, MORE_FUNC_MEASURES, Outputs, UndefinedScore

REGISTRY = {**FUNC_MEASURES, **MORE_FUNC_MEASURES}
KEYS = list(REGISTRY)
ORDER = torch.randperm(80, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("key", KEYS)
def test_scores_are_as_the_card_says(key):
    a, b = outputs()
    measure, card = REGISTRY[key](), CARDS[key]
    if card.self_score is not None:
        assert measure(a, a) == pytest.approx(card.self_score, abs=1e-12)
    assert card.symmetric and measure(a, b) == pytest.approx(measure(b, a), abs=1e-12)
    scores = [measure(a, b), measure(a, Outputs(a.logits + 0.3 * (b.logits - a.logits), a.labels))]
    assert scores == sorted(scores, reverse=not card.larger_is_closer)
    assert all(card.range[0] <= score <= card.range[1] for score in scores)


NAMES = torch.tensor([4, 2, 0, 1, 3])  # of the classes
TRANSFORMATIONS = {  # what a card can say that a measure does not see -> an example of it, on both models or the second
    "classes": lambda a, b: [Outputs(model.logits[:, NAMES], NAMES.argsort()[model.labels]) for model in (a, b)],
    "shift": lambda a, b: [a, Outputs(b.logits + torch.arange(80)[:, None], b.labels)],
    "confidence": lambda a, b: [a, Outputs(3 * b.logits, b.labels)],
}


@pytest.mark.parametrize("change", TRANSFORMATIONS)
@pytest.mark.parametrize("key", KEYS)
def test_invariances_hold_and_others_fail(key, change):
    a, b = outputs()
    measure = REGISTRY[key]()
    changed = measure(*TRANSFORMATIONS[change](a, b))
    assert (changed == pytest.approx(measure(a, b), abs=1e-4)) == (change in CARDS[key].invariances)


@pytest.mark.parametrize("key", KEYS)
def test_order_of_images_and_kind_of_input_do_not_matter(key):
    a, b = outputs()
    measure = REGISTRY[key]()
    moved_a, moved_b = (Outputs(output.logits[ORDER], output.labels[ORDER]) for output in (a, b))
    assert measure(moved_a, moved_b) == pytest.approx(measure(a, b), abs=1e-12)
    arrays = [Outputs(output.logits.numpy(), output.labels.numpy().astype(np.int32)) for output in (a, b)]
    assert measure(*arrays) == measure(a, b)
    permuted = measure.compare(measure.prepare(a), measure.prepare(b).permute(ORDER))
    assert permuted == pytest.approx(measure(a, moved_b), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("key", [*KEYS, *FUNC_STATISTICS])
def test_agrees_with_the_definition(key, seed):
    models = outputs(count=4, seed=seed)
    if key in FUNC_STATISTICS:
        expected = ORACLES[key]([model.logits.argmax(dim=1).numpy() for model in models])
        assert FUNC_STATISTICS[key]()(models) == pytest.approx(expected, abs=1e-12)
    else:
        assert REGISTRY[key]()(*models[:2]) == pytest.approx(ORACLES[key](*models[:2]), abs=1e-12)


def test_churn_with_another_exponent_agrees_with_the_definition():
    a, b = (output.logits for output in outputs())
    expected = oracles.churn(a.numpy(), b.numpy(), 3)
    assert measures.churn(a, b, alpha=3) == pytest.approx(expected, abs=1e-12)


def test_jsd_of_disjoint_predictions_is_ln_2_even_where_float32_saturates():
    a = torch.tensor([[1000.0, 0.0], [200.0, -200.0]])
    assert measures.jsd(a, a.flip(1)) == pytest.approx(math.log(2), abs=1e-12)
    assert measures.jsd(a, a) == 0


def test_churn_of_sharp_confidence_is_disagreement():
    a, b = outputs()
    different = measures.disagreement(a.logits.argmax(dim=1), b.logits.argmax(dim=1))
    assert measures.churn(a.logits, b.logits, alpha=1e6) == pytest.approx(different, abs=1e-9)


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


@pytest.mark.parametrize(
    ("measure", "inputs", "words"),
    [
        (measures.kappa, [torch.zeros(4).long()] * 2, "same one class"),
        (measures.normalized_disagreement, [torch.zeros(4).long()] * 3, "leave no room"),
        (measures.error_consistency, [torch.zeros(4).long()] * 3, "always right"),
        (measures.capa, [torch.tensor([[1e3, 0.0]])] * 2 + [torch.tensor([0])], "always right"),
    ],
)
def test_undefined_scores_say_why(measure, inputs, words):
    with pytest.warns(UndefinedScore, match=words):
        assert math.isnan(measure(*inputs))


A, B = outputs()


@pytest.mark.parametrize("key", KEYS)
def test_missing_labels_and_nan_are_errors(key):
    measure = REGISTRY[key]()
    if key in ("norm", "error_consistency", "capa"):
        with pytest.raises(ValueError, match="needs labels"):
            measure(A.logits, B.logits)
    broken = A.logits.clone()
    broken[5, 1] = math.nan
    with pytest.raises(ValueError, match="first in row 5"):
        measure(Outputs(broken, A.labels), B)


@pytest.mark.parametrize(
    ("measure", "inputs", "words"),
    [
        (measures.jsd, (A.logits, B.logits[:70]), "80 and 70"),
        (measures.jsd, (A.logits, B.logits[:, :4]), "same classes"),
        (measures.churn, (A.logits, B.logits[:, :4]), "same classes"),
        (measures.jsd, (A.logits[0], B.logits[0]), "one column per class"),
        (measures.disagreement, (A.logits, B.logits), "one class index per image"),
        (partial(measures.kappa, num_classes=2), (torch.tensor([0, 2]), torch.tensor([0, 1])), "between 0 and 1"),
        (REGISTRY["norm"](), (Outputs(A.logits, A.labels[:3]), B), "as many labels"),
        (measures.ambiguity, ([torch.tensor([0])],), "at least two models"),
        (measures.discrepancy, ([torch.tensor([0]), torch.tensor([0, 1])],), "same images"),
    ],
)
def test_wrong_input_is_an_error(measure, inputs, words):
    with pytest.raises(ValueError, match=words):
        measure(*inputs)
