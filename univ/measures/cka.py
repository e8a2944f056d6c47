"""Centred kernel alignment with a linear kernel, unbiased and biased: (N, D_a), (N, D_b) -> similarity, 1 = alike."""

import math

import torch

from univ.measures.base import Center, Centered, Measure, Pair, Rep, cross_product, gram, undefined

_BLOCK = 1024  # columns per block of X'X, of which only the upper half is computed


def cka(x: Rep, y: Rep, *, unbiased: bool = True, stream: bool = False) -> float:
    """Linear CKA of two representations of the same images.

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X', L = Y Y'.
    Unbiased: HSIC_1(K, L) = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n(n-3)), zeroed diagonals. It does
    not change when X is centred; then 1'K1 = -sum a_i and (K1)_i = -a_i, with a_i the squared row norms, so that
    tr(KL) = |X'Y|_F^2 - sum a_i b_i is all that is left to compute: O(n p q) instead of O(n^2 (p + q)).
    Biased: |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) of the centred ones, which grows with p/n even for unrelated models.

    Args:
        x, y: (N, D_x) and (N, D_y), row i of both from the same image.
        unbiased: HSIC_1 (the default) or the biased estimator.
        stream: leave x and y where they are (memory-mapped) and centre them block by block.

    Returns:
        Similarity of at most 1, where 1 is "equal up to rotation and scale". 0 is what unrelated models have in
        expectation (unbiased), so slightly negative values are right; they are not clamped. Nan, with an
        `UndefinedScore` warning, if a representation has no variance to compare.

    Raises:
        ValueError: fewer than 4 images, different numbers of images, NaN input.

    Source: Kornblith et al., ICML 2019; HSIC_1: Song et al., JMLR 2012; Nguyen, Raghu and Kornblith, ICLR 2021.
    """
    return cka_measure(unbiased=unbiased, stream=stream)(x, y)


def cka_measure(*, unbiased: bool = True, stream: bool = False) -> Measure:
    """Measure `cka` (`cka_biased` with unbiased=False); see `cka`."""
    name, score = ("cka", unbiased_cka) if unbiased else ("cka_biased", biased_cka)
    return Measure(name, Center(stream=stream), score, self_score=1.0, larger_is_closer=True)


def unbiased_cka(pair: Pair) -> float:
    """Unbiased linear CKA of two `Centered` models."""
    return normalized(*unbiased_hsics(pair))


def unbiased_hsics(pair: Pair) -> tuple[float, float, float]:
    """HSIC_1(K, L), HSIC_1(K, K) and HSIC_1(L, L) of two `Centered` models.

    Raises:
        ValueError: fewer than 4 images.
    """
    if len(pair.a) < 4:
        raise ValueError(f"unbiased CKA needs at least 4 images, got {len(pair.a)}")
    return pair.once(hsic), pair.a.once_any_order(self_hsic), pair.b.once_any_order(self_hsic)


def biased_cka(pair: Pair) -> float:
    """Biased linear CKA of two `Centered` models."""
    return normalized(
        pair.once(cross_norm), pair.a.once_any_order(self_cross_norm), pair.b.once_any_order(self_cross_norm)
    )


def normalized(both: float, a: float, b: float) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)); nan with the reason where that is not defined."""
    if not (a > 0 and b > 0):
        return undefined(f"CKA is not defined: the self-HSIC of a representation is not positive ({min(a, b):.3g})")
    return both / math.sqrt(a) / math.sqrt(b)  # two roots: the product of two small HSICs may underflow


def hsic(pair: Pair) -> float:
    """HSIC_1 of two `Centered` models, from |A'B|_F^2 and the squared row norms."""
    return hsic_from_norms(pair.once(cross_norm), pair.a.square_norms, pair.b.square_norms)


def self_hsic(a: Centered) -> float:
    """HSIC_1 of a model with itself; 0 where what is left of its terms is only their rounding."""
    cross = a.once_any_order(self_cross_norm)
    value = hsic_from_norms(cross, a.square_norms, a.square_norms)
    rounding = 8 * torch.finfo(a.rows.dtype).eps * cross / (len(a) * (len(a) - 3))
    return value if abs(value) > rounding else 0.0


def hsic_from_norms(cross: float, a: torch.Tensor, b: torch.Tensor) -> float:
    """HSIC_1 of centred representations: `cross` = |A'B|_F^2, a and b (N,) the squared norms of their rows."""
    n = len(a)
    dot = torch.dot(a, b).item()
    total = a.sum().item() * b.sum().item()
    return (cross - dot + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * dot) / (n * (n - 3))


def cross_norm(pair: Pair) -> float:
    """|A'B|_F^2 = <A A', B B'>_F of two `Centered` models, by whichever side is smaller."""
    if len(pair.a) < min(pair.a.width, pair.b.width):
        a, b = pair.a.once(gram), pair.b.once(gram)
        return sum(torch.sum(x.double() * y.double()).item() for x, y in zip(a.split(_BLOCK), b.split(_BLOCK)))
    return pair.once(cross_product).square().sum().item()


def self_cross_norm(a: Centered) -> float:
    """|A'A|_F^2 of one `Centered` model."""
    if len(a) < a.width:
        return sum(block.double().square().sum().item() for block in a.once(gram).split(_BLOCK))
    return cross_product(Pair(a, a)).square().sum().item()
