"""Exactness at the study's size, 10 000 images of 2048 columns: against the slow definitions in float64.

Errors that small inputs hide show here: float32 sums over 20 million values, ties among 10 000 neighbours.
"""

import numpy as np
import oracles
import pytest
import torch
from oracles import ORACLES

from univ import measures
from univ.measures import FUNC_MEASURES, REP_MEASURES, Outputs, StreamedPair

pytestmark = pytest.mark.slow

N, WIDTH, CLASSES = 10_000, 2048, 1000


@pytest.fixture(scope="module")
def reps():
    """Two rectified views of the same points: means far from zero, a falling spectrum, dead and duplicated rows."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(N, 200, generator=generator) * torch.arange(1, 201) ** -0.5
    views = []
    for scale in (1.0, 30.0):
        view = points @ torch.randn(200, WIDTH, generator=generator)
        view += 0.4 * torch.randn(N, WIDTH, generator=generator) - 0.2
        view = scale * view.clamp_(min=0)
        view[:, :40] = 0  # units that never fire
        view[500:520] = view[7]  # the same image twenty times
        views.append(view)
    return views


@pytest.mark.parametrize("key", ["cka", "proc", "cos"])
def test_agrees_with_the_definition(key, reps):
    expected = ORACLES[key](*(rep.numpy() for rep in reps))
    assert REP_MEASURES[key]()(*reps) == pytest.approx(expected, abs=1e-6)
    assert 0.02 < expected < 1.9  # far from where any two representations would agree


def test_one_pass_over_batches_agrees_with_the_definitions(reps):
    streamed = StreamedPair()
    for x, y in zip(reps[0].split(700), reps[1].split(700), strict=True):
        streamed.update(x, y)
    arrays = [rep.numpy() for rep in reps]
    assert streamed.cka() == pytest.approx(measures.cka(*reps), abs=1e-6)
    assert streamed.procrustes() == pytest.approx(oracles.procrustes(*arrays), abs=1e-6)


def nearest(rep: torch.Tensor, k: int, function: str) -> np.ndarray:
    """(N, k) indices of the nearest other images, by all similarities in float64, ties by lower index."""
    rows = rep.double().numpy()
    rows = rows - rows.mean(axis=0)
    _, group = np.unique(rep.numpy(), axis=0, return_inverse=True)
    if function == "cos_sim":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = np.empty((len(rows), k), dtype=int)
    squares = np.square(rows).sum(axis=1)
    first = np.unique(group, return_index=True)[1][group]  # equal rows get the distances of the first of them
    for start in range(0, len(rows), 500):
        products = (rows[start : start + 500] @ rows.T)[:, first]
        far = -products if function == "cos_sim" else squares[first] - 2 * products
        far[np.arange(len(far)), np.arange(start, start + len(far))] = np.inf
        found[start : start + 500] = np.argsort(far, axis=1, kind="stable")[:, :k]
    return found


@pytest.mark.parametrize(("k", "function"), [(10, "cos_sim"), (500, "cos_sim"), (10, "euc")])
def test_jaccard_agrees_with_the_definition(k, function, reps):
    lists = zip(*(nearest(rep, k, function) for rep in reps), strict=True)
    expected = np.mean([len(np.intersect1d(a, b)) / len(np.union1d(a, b)) for a, b in lists])
    assert measures.jaccard(*reps, k=k, function=function) == pytest.approx(expected, abs=1e-6)


def test_functional_measures_agree_with_the_definitions():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    shared = torch.randn(N, CLASSES, generator=generator) + 3.5 * torch.nn.functional.one_hot(labels, CLASSES)
    noisy = (3 * (shared + 0.7 * torch.randn(N, CLASSES, generator=generator)) for _ in range(2))
    a, b = (Outputs(logits, labels) for logits in noisy)
    for key, measure in FUNC_MEASURES.items():
        assert measure()(a, b) == pytest.approx(ORACLES[key](a, b), abs=1e-6), key
