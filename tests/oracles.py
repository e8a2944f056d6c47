"""Slow, literal float64 transcriptions of the definitions, sharing no code with the fast forms they check.

In: NumPy arrays of the same images; out: the score. Loops and n x n matrices throughout. At the end, `ORACLES`, one for
each measure, and views of the same points to compare them on.
"""

import itertools
import math
from functools import partial

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse.csgraph
import scipy.spatial
import scipy.stats
import torch

from univ.measures import Outputs


def _center(x, center=True):
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    return x - x.mean(axis=0) if center else x


def hsic1(k, l):  # noqa: E741 - the symbol of the paper
    """Song et al. 2012, equation 5, term by term."""
    n = len(k)
    k, l = k.copy(), l.copy()  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    ones = np.ones(n)
    return (
        np.trace(k @ l)
        + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ k @ l @ ones)
    ) / (n * (n - 3))


def cka(x, y):
    k, l = (np.asarray(m, np.float64) @ np.asarray(m, np.float64).T for m in (x, y))  # noqa: E741 - not centred
    return hsic1(k, l) / math.sqrt(hsic1(k, k) * hsic1(l, l))


def cka_biased(x, y):
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, l = (h @ (np.asarray(m, np.float64) @ np.asarray(m, np.float64).T) @ h for m in (x, y))  # noqa: E741
    return np.sum(k * l) / math.sqrt(np.sum(k * k) * np.sum(l * l))


def procrustes(x, y, center=True, normalize=True):
    x, y = _center(x, center), _center(y, center)
    if normalize:
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(m, ((0, 0), (0, width - m.shape[1]))) for m in (x, y))
    u, _, vt = np.linalg.svd(x.T @ y)
    return np.linalg.norm(x @ (u @ vt) - y) ** 2


def neighbors(x, k, function="cos_sim", center=True, published=False):
    """List of lists: the k nearest of each image, nearest first, one pair of images at a time."""
    x = _center(x, center)
    n = len(x)
    found = []
    for i in range(n):
        far = []
        for j in range(n):
            if function == "cos_sim":
                norms = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                value = -float((x[i] * x[j]).sum() / norms) if norms > 0 else 0.0
            else:
                value = float(np.square(x[i] - x[j]).sum())
            if j == i and not published:
                continue
            if j == i:
                value = 0.0 if function == "cos_sim" else -1.0
            far.append((value, j))
        found.append([j for _, j in sorted(far)[:k]])
    return found


def jaccard(x, y, k, **settings):
    lists = zip(neighbors(x, k, **settings), neighbors(y, k, **settings))
    return np.mean([len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in lists])


def _rank(a, b):
    common = set(a) & set(b)
    if not common:
        return 0.0
    total = 0.0
    for v in common:
        r1, r2 = a.index(v) + 1, b.index(v) + 1
        total += 2 / ((1 + abs(r1 - r2)) * (r1 + r2))
    return total / sum(1 / i for i in range(1, len(common) + 1))


def rank_similarity(x, y, k, **settings):
    return np.mean([_rank(a, b) for a, b in zip(neighbors(x, k, **settings), neighbors(y, k, **settings))])


def joint_similarity(x, y, k, **settings):
    lists = zip(neighbors(x, k, **settings), neighbors(y, k, **settings))
    return np.mean([len(set(a) & set(b)) / len(set(a) | set(b)) * _rank(a, b) for a, b in lists])


def second_order_cosine(x, y, center=True):
    similarities = []
    for rep in (x, y):
        rep = _center(rep, center)
        norms = np.linalg.norm(rep, axis=1, keepdims=True)
        rep = np.divide(rep, norms, out=np.zeros_like(rep), where=norms > 0)
        similarity = rep @ rep.T
        np.fill_diagonal(similarity, 0)
        similarities.append(similarity)
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*similarities)])


def gulp(x, y, gulp_lambda=0.0):
    """With X = U diag(s) V' in place of S = X'X / n, which would square the condition of X."""
    parts = []
    for rep in (x, y):
        rows = _center(rep)
        u, s, _ = np.linalg.svd(rows, full_matrices=False)
        typical = math.sqrt(len(rows) * np.median(np.square(rows).sum(axis=1)))  # one far image's rounding adds no rank
        present = s > 4.8e-7 * min(s[0], typical)
        u, s = u[:, present], s[present]
        s = s / np.linalg.norm(s)
        parts.append((u, s**2 / (s**2 + gulp_lambda)))
    (u, a), (v, b) = parts  # S M has the eigenvalues a; M S_xy M S_yx is similar to a^(1/2) U'V b V'U a^(1/2)
    return np.sum(a**2) + np.sum(b**2) - 2 * np.sum((np.sqrt(a)[:, None] * (u.T @ v) * np.sqrt(b)) ** 2)


def shape(x, y, alpha=1.0, center=True):
    """Of activations (N, C, H, W) of equal size, or (N, D); narrower ones padded with zero channels."""
    whitened = []
    for rep in (x, y):
        rows = (
            np.array([image[:, i, j] for image in rep for i, j in np.ndindex(image.shape[1:])])
            if rep.ndim == 4
            else rep
        )
        rows = _center(rows, center)
        inverse_root = np.linalg.inv(scipy.linalg.sqrtm(rows.T @ rows).real) if alpha < 1 else 0
        whitened.append(alpha * rows + (1 - alpha) * rows @ inverse_root if alpha < 1 else rows)
    width = max(rows.shape[1] for rows in whitened)
    a, b = (np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in whitened)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, _ = scipy.linalg.orthogonal_procrustes(a, b)
    return 2 * math.asin(min(1, np.linalg.norm(a @ rotation - b) / 2))


def rbf_cka(x, y, bandwidth=1.0):
    kernels = []
    for rep in (x, y):
        rep = np.asarray(rep, np.float64)
        squares = np.array([[np.square(a - b).sum() for b in rep] for a in rep])
        between = np.sort(squares[np.triu_indices(len(rep), 1)])
        median = between[(len(between) - 1) // 2]
        kernels.append(np.exp(-squares / (2 * bandwidth**2 * median)))
    k, l = kernels  # noqa: E741
    return hsic1(k, l) / math.sqrt(hsic1(k, k) * hsic1(l, l))


def mutual_knn(x, y, k):
    lists = zip(neighbors(x, k, center=False), neighbors(y, k, center=False))
    return np.mean([len(set(a) & set(b)) / k for a, b in lists])


def cknna(x, y, k):
    masks, kernels = [], []
    for rep in (x, y):
        rep = np.asarray(rep, np.float64)
        rep = rep / np.linalg.norm(rep, axis=1, keepdims=True)
        mask = np.zeros((len(rep), len(rep)))
        for i, found in enumerate(neighbors(rep, k, center=False)):
            mask[i, found] = 1
        masks.append(mask)
        kernels.append(rep @ rep.T)

    def masked(i, j):
        mask = masks[i] * masks[j]
        return hsic1(mask * kernels[i], mask * kernels[j])

    return masked(0, 1) / math.sqrt(masked(0, 0) * masked(1, 1))


def linear_predictivity(x, y, ridge=1e-3, folds=5):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    left = total = 0.0
    for fold in range(folds):
        held = np.arange(len(x)) % folds == fold
        mx, my = x[~held].mean(axis=0), y[~held].mean(axis=0)
        a, b = x[~held] - mx, y[~held] - my
        s = a.T @ a / len(a)
        weights = np.linalg.inv(s + ridge * np.trace(s) / len(s) * np.eye(len(s))) @ (a.T @ b / len(a))
        left += np.square(y[held] - my - (x[held] - mx) @ weights).sum()
        total += np.square(y[held] - my).sum()
    return 1 - left / total


def _components(x, variance):
    u, s, vt = np.linalg.svd(_center(x), full_matrices=False)
    rank = int((s > 4.8e-7 * s[0]).sum())
    if variance < 1:
        rank = min(rank, int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), variance)) + 1)
    return u[:, :rank], s[:rank, None] * vt[:rank]


def svcca(x, y, variance=0.99):
    a, b = _components(x, variance)[0], _components(y, variance)[0]
    return np.linalg.svd(a.T @ b, compute_uv=False).sum() / min(a.shape[1], b.shape[1])


def pwcca(x, y):
    (a, _), (b, _) = _components(x, 1), _components(y, 1)
    left, rho, right = np.linalg.svd(a.T @ b, full_matrices=False)
    scores = []
    for rep, rank, variables in ((x, a.shape[1], a @ left), (y, b.shape[1], b @ right.T)):
        if rank == min(a.shape[1], b.shape[1]):
            weights = [sum(abs(h @ column) for column in _center(rep).T) for h in variables.T]
            scores.append(np.dot(weights, rho) / np.sum(weights))
    return np.mean(scores)


def rsa(x, y):
    upper = np.triu_indices(len(x), 1)
    rdms = [1 - np.corrcoef(np.asarray(rep, np.float64)) for rep in (x, y)]
    return scipy.stats.spearmanr(rdms[0][upper], rdms[1][upper]).statistic


def _correlations(x, y):
    units = [[u for u in _center(rep).T if np.abs(u).max() > 0] for rep in (x, y)]
    return np.array([[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in units[1]] for u in units[0]])


def hard_match(x, y):
    found = _correlations(x, y)
    return found[scipy.optimize.linear_sum_assignment(-found)].mean()


def soft_match(x, y):
    found = _correlations(x, y)
    return (np.mean([max(row) for row in found]) + np.mean([max(column) for column in found.T])) / 2


def _padded(x, y):
    width = max(x.shape[1], y.shape[1])
    return [np.pad(np.asarray(rep, np.float64), ((0, 0), (0, width - rep.shape[1]))) for rep in (x, y)]


def perm_proc(x, y):
    x, y = _padded(x, y)
    costs = scipy.spatial.distance.cdist(x.T, y.T, "sqeuclidean")
    return math.sqrt(costs[scipy.optimize.linear_sum_assignment(costs)].sum())


def aligned_cos(x, y):
    x, y = _padded(x, y)
    x = x @ scipy.linalg.orthogonal_procrustes(x, y)[0]
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y)])


def _distances(x):
    return scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(np.asarray(x, np.float64)))


def dcor(x, y):
    a, b = (d - d.mean(0) - d.mean(1)[:, None] + d.mean() for d in (_distances(x), _distances(y)))
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return math.sqrt((a * b).mean() / math.sqrt((a * a).mean() * (b * b).mean()))


def eos(x, y):
    bases = []
    for rep in (x, y):
        u, s, _ = np.linalg.svd(np.asarray(rep, np.float64), full_matrices=False)
        typical = math.sqrt(len(rep) * np.median(np.square(rep.astype(np.float64)).sum(axis=1)))
        bases.append(u[:, s > 4.8e-7 * min(s[0], typical)])
    return np.square(bases[0].T @ bases[1]).sum() / max(basis.shape[1] for basis in bases)


def rsm_norm(x, y):
    return np.linalg.norm(_distances(x) - _distances(y))


def uniformity(x, y, t=2):
    a, b = (math.log(np.exp(-t * _distances(rep) ** 2).sum() / len(rep) ** 2) for rep in (x, y))
    return abs(a - b)


def imd(x, y, k):
    ts, traces = np.logspace(-1, 1, 256), []
    for rep in (x, y):
        graph = np.zeros((len(rep), len(rep)))
        for i, found in enumerate(neighbors(rep, k, "euc", center=False)):
            graph[i, found] = 1
        laplacian = scipy.sparse.csgraph.laplacian(np.maximum(graph, graph.T), normed=True)
        traces.append(np.array([np.trace(scipy.linalg.expm(-t * laplacian)) / len(rep) for t in ts]))
    return np.max(np.exp(-2 * (ts + 1 / ts)) * np.abs(traces[0] - traces[1]))


def rtd_lite(x, y):
    """All images in one trial; trees through SciPy."""
    scaled = []
    for rep in (x, y):
        r = scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(np.asarray(rep, np.float64)))
        scaled.append(r / np.quantile(r, 0.9))
    trees = [scipy.sparse.csgraph.minimum_spanning_tree(r).sum() for r in (*scaled, np.minimum(*scaled))]
    return (trees[0] + trees[1]) / 2 - trees[2]


def error_consistency(a, b, labels):
    right = [[int(i == label) for i, label in zip(preds, labels)] for preds in (a, b)]
    return kappa(*right)


def capa(a, b, labels):
    p, q = softmax(a), softmax(b)
    observed = sum(float(pi @ qi) for pi, qi in zip(p, q)) / len(p)
    pa, pb = (np.mean([row[label] for row, label in zip(m, labels)]) for m in (p, q))
    expected = pa * pb + (1 - pa) * (1 - pb) / (p.shape[1] - 1)
    return (observed - expected) / (1 - expected)


def rtd_barcode(r1, r2):
    """H1 of the full [[0, r1], [r1, min(r1, r2)]], through gudhi's simplex tree instead of its Ripser."""
    import gudhi

    n = len(r1)
    matrix = np.block([[np.zeros((n, n)), r1], [r1, np.minimum(r1, r2)]])
    matrix[matrix < 1e-6 * r1.mean()] = 0
    tree = gudhi.RipsComplex(distance_matrix=matrix).create_simplex_tree(max_dimension=2)
    tree.compute_persistence()
    bars = tree.persistence_intervals_in_dimension(1)
    return float(sum(death - birth for birth, death in bars))


def rtd(x, y):
    """All images in one trial."""
    scaled = []
    for rep in (x, y):
        rep = np.asarray(rep, np.float64)
        r = np.array([[np.linalg.norm(a - b) for b in rep] for a in rep])
        scaled.append(r / np.quantile(r, 0.9))
    return (rtd_barcode(scaled[0], scaled[1]) + rtd_barcode(scaled[1], scaled[0])) / 2


def magnitude(x):
    return np.linalg.norm(np.asarray(x, np.float64).mean(axis=0))


def concentricity(x):
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    return np.mean([row @ mean / np.linalg.norm(row) / np.linalg.norm(mean) for row in x])


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def disagreement(a, b):
    return sum(int(i != j) for i, j in zip(a, b)) / len(a)


def normalized_disagreement(a, b, labels):
    e1, e2 = disagreement(a, labels), disagreement(b, labels)
    least = abs(e1 - e2)
    return (disagreement(a, b) - least) / (min(e1 + e2, 1) - least)


def kappa(a, b):
    num_classes = max(*a, *b) + 1
    table = np.zeros((num_classes, num_classes))
    for i, j in zip(a, b):
        table[i, j] += 1 / len(a)
    expected = sum(table[c].sum() * table[:, c].sum() for c in range(num_classes))
    return (np.trace(table) - expected) / (1 - expected)


def jsd(a, b):
    total = 0.0
    for p, q in zip(softmax(a), softmax(b)):
        m = (p + q) / 2
        total += sum(pi * math.log(pi / mi) for pi, mi in zip(p, m) if pi > 0) / 2
        total += sum(qi * math.log(qi / mi) for qi, mi in zip(q, m) if qi > 0) / 2
    return total / len(a)


def churn(a, b, alpha):
    total = 0.0
    for p, q in zip(softmax(a), softmax(b)):
        total += sum(abs((pi / p.max()) ** alpha - (qi / q.max()) ** alpha) for pi, qi in zip(p, q))
    return total / (2 * len(a))


def ambiguity(predictions):
    return np.mean([len(set(image)) > 1 for image in zip(*predictions)])


def discrepancy(predictions):
    return max(disagreement(a, b) for a, b in itertools.combinations(predictions, 2))


def _of_outputs(definition, labels=False, predictions=True):
    """A definition on predictions (or logits) as one on `Outputs`."""

    def oracle(a, b):
        logits = [np.asarray(output.logits) for output in (a, b)]
        values = [value.argmax(axis=1) for value in logits] if predictions else logits
        return definition(*values, *([np.asarray(a.labels)] if labels else []))

    return oracle


K = 7  # neighbours, of 60 images
SETTINGS = {"knn": K, "neighbors": K, "batch": 60, "trials": 2, "t": 0.02}  # as `Card.build` takes them
ORACLES = {  # key -> definition, with these settings
    "mag": magnitude,
    "con": concentricity,
    "cka": cka,
    "proc": procrustes,
    "jacc": partial(jaccard, k=K),
    "rank": partial(rank_similarity, k=K),
    "rank_jacc": partial(joint_similarity, k=K),
    "gulp": gulp,
    "rtd": rtd,
    "cos": second_order_cosine,
    "shape": shape,
    "mutual_knn": partial(mutual_knn, k=K),
    "cknna": partial(cknna, k=K),
    "cka_biased": cka_biased,
    "cka_rbf": rbf_cka,
    "linreg": linear_predictivity,
    "svcca": svcca,
    "pwcca": pwcca,
    "rsa": rsa,
    "rtd_lite": rtd_lite,
    "hard_match": hard_match,
    "soft_match": soft_match,
    "perm_proc": perm_proc,
    "aligned_cos": aligned_cos,
    "dcor": dcor,
    "eos": eos,
    "rsm_norm": rsm_norm,
    "uniformity": partial(uniformity, t=0.02),
    "imd": partial(imd, k=K),
    "dis": _of_outputs(disagreement),
    "norm": _of_outputs(normalized_disagreement, labels=True),
    "kappa": _of_outputs(kappa),
    "jsd": _of_outputs(jsd, predictions=False),
    "churn": _of_outputs(partial(churn, alpha=1), predictions=False),
    "amb": ambiguity,
    "disc": discrepancy,
    "error_consistency": _of_outputs(error_consistency, labels=True),
    "capa": _of_outputs(capa, labels=True, predictions=False),
}


SHAPES = {
    "tall": {"n": 60, "p": 12, "q": 9},
    "wide": {"n": 20, "p": 45, "q": 31},
    "one wide": {"n": 20, "p": 45, "q": 9},
    "low rank": {"n": 60, "p": 30, "q": 40, "noise": 0},
}


def related(n=60, p=12, q=9, noise=0.5, seed=0, dtype=torch.float32):
    """Two noisy linear views of the same points, with uneven spectra and means that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    views = []
    for width in (p, q):
        view = points @ torch.randn(6, width, generator=generator, dtype=torch.float64)
        view = view + noise * torch.randn(n, width, generator=generator, dtype=torch.float64)
        views.append((view * torch.linspace(1, 0.1, width, dtype=torch.float64) + 0.7).to(dtype))
    return views


def rotation(width, seed=1):
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double()).Q


def outputs(n=80, classes=5, count=2, seed=0):
    """Outputs of models that are right about two times in three, each in its own way."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    signal = 1.5 * torch.nn.functional.one_hot(labels, classes)
    return [Outputs(signal + torch.randn(n, classes, generator=generator), labels) for _ in range(count)]
