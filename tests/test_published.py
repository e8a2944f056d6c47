"""Scores that others published of the same numbers: the similarity repository's table, NumPy's legacy seed 0."""

import math

import numpy as np
import pytest

from univ import measures

PUBLISHED = {  # name in the table -> (value, our call)
    "debiased CKA": (0.02359869858055674, measures.cka),
    "biased CKA": (0.4893427391044152, lambda x, y: measures.cka(x, y, unbiased=False)),
    "Procrustes, not scaled": (34.235676378936446, lambda x, y: measures.procrustes(x, y, normalize=False)),
    "1 - scaled Procrustes / 2": (0.7227787175993363, lambda x, y: 1 - measures.procrustes(x, y) / 2),
    "its arccos": (0.762981579934097, measures.shape_distance),
    "Jaccard": (0.21488074762068568, lambda x, y: measures.jaccard(x, y, k=10, center=False)),
    "rank similarity": (0.137112252104584, lambda x, y: measures.rank_similarity(x, y, k=10, center=False)),
    "GULP": (7.084992868422333, measures.gulp),
    "SVCCA": (0.7831814122650432, lambda x, y: measures.svcca(x, y, variance=0.99)),
    "RSA": (-0.004092795694065198, measures.rsa),
    "magnitude difference": (0.09000616637580139, lambda x, y: abs(measures.magnitude(x) - measures.magnitude(y))),
    "concentricity difference": (
        0.005424143247378943,
        lambda x, y: abs(measures.concentricity(x) - measures.concentricity(y)),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_value(name):
    generator = np.random.RandomState(0)
    x, y = (generator.uniform(size=(30, 25)) for _ in "xy")
    value, ours = PUBLISHED[name]
    assert ours(x, y) == pytest.approx(value, abs=1e-9)


def _kendall_a(a, b):
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs) / len(pairs)


COMPARED = {
    "pearson": lambda a, b: np.corrcoef(a, b)[0, 1],
    "kendall": _kendall_a,
    "cosine": lambda a, b: a @ b / math.sqrt(a @ a * (b @ b)),
}


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean", "cosine"])
@pytest.mark.parametrize("comparison", COMPARED)
def test_rsa_by_other_dissimilarities_and_comparisons(dissimilarity, comparison):
    from scipy.spatial.distance import pdist

    generator = np.random.RandomState(1)
    x, y = generator.randint(3, size=(12, 4)) + np.arange(4), generator.uniform(size=(12, 5))
    x[3] = x[4]  # ties
    expected = COMPARED[comparison](*(pdist(rep, dissimilarity) for rep in (x.astype(float), y)))
    got = measures.rsa(x.astype(float), y, dissimilarity=dissimilarity, comparison=comparison)
    assert got == pytest.approx(expected, abs=1e-9 if comparison != "kendall" else 0.01)  # ties are rounding there


def test_rsa_settings_are_checked():
    x = np.random.RandomState(0).rand(5, 4)
    with pytest.raises(ValueError, match="choose from correlation"):
        measures.rsa(x, x, dissimilarity="l1")
    with pytest.raises(ValueError, match="choose from pearson"):
        measures.rsa(x, x, comparison="tau")
