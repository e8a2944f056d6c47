"""Second-order cosine similarity: (N, D_a), (N, D_b) -> similarity in [-1, 1], 1 = alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import FEW_ROWS, Measure, Pair, Preparation, Rep
from univ.measures.cards import ALL, as_function, register
from univ.measures.centering import BLOCK_ROWS, Center, Centered, cross_product, product


@register("cos", "cos_sim", "cos_sim", "second-order cosine", lists=ALL, range=(-1, 1))
def second_order_cosine_measure(*, center: bool = True) -> Measure:
    """Mean over images of the cosine between their rows of the two cosine-similarity matrices (diagonals zero).

    With unit rows a_i, b_i and C = A'B, the inner product of image i's rows is a_i' C b_i - 1, and their squared norms
    are the same with A'A and B'B: O(N p q), and no N x N matrix. Where N < p or q the matrices are used block by block.

    Args:
        center: subtract the column means first.

    Returns:
        Similarity in [-1, 1], 1 = every image has the same similarities to all others. An image whose similarities
        are all zero in one of the two counts as 0.

    Source: after Hamilton, Leskovec and Jurafsky, EMNLP 2016, but not their measure: theirs takes the similarities to
    the union of an image's k nearest neighbours in the two models, ours those to all images, as in the study: the
    scores are not comparable.
    """
    return Measure(UnitRows(center), second_order_score)


second_order_cosine = as_function(second_order_cosine_measure, "second_order_cosine")


@dataclass(frozen=True)
class UnitRows(Preparation):
    """Centre the columns, if asked, and scale rows to norm 1 (rows of zeros stay: their `square_norms` are 0)."""

    center: bool = True

    def prepare(self, rep: Rep) -> Centered:
        centered = Center(self.center).prepare(rep)
        norms = centered.square_norms.sqrt()[:, None]
        rows = torch.empty(centered.rows.shape, dtype=centered.block(0, 1).dtype, device=norms.device)
        for start in range(0, len(rows), FEW_ROWS):
            span = slice(start, start + FEW_ROWS)
            block = centered.block(start, start + FEW_ROWS).double()
            rows[span] = torch.where(norms[span] > 0, block / norms[span], 0.0)
        return Centered(rows, None, (norms[:, 0] > 0).double())


def second_order_score(pair: Pair) -> float:
    """Second-order cosine similarity of two models of `UnitRows`."""
    norms = pair.a.once(square_row_norms) * pair.b.once(square_row_norms)
    return torch.where(norms > 0, inner_products(pair) / norms.sqrt(), 0.0).mean().item()


def square_row_norms(a: Centered) -> Tensor:
    """(N,) float64 squared norms of the rows of the cosine-similarity matrix, without its diagonal."""
    return inner_products(Pair(a, a)).clamp(min=0)


def inner_products(pair: Pair) -> Tensor:
    """(N,) float64 inner products of row i of both cosine-similarity matrices, without their diagonals."""
    a, b = pair.a, pair.b
    wide = len(a) < max(a.width, b.width)
    cross = None if wide else pair.once(cross_product).to(torch.promote_types(a.rows.dtype, b.rows.dtype))
    found = []
    for start in range(0, len(a), BLOCK_ROWS):
        rows_a, rows_b = a.block(start, start + BLOCK_ROWS), b.block(start, start + BLOCK_ROWS)
        if wide:
            found += row_products(product(rows_a, a.rows.T), product(rows_b, b.rows.T))
        else:
            found += row_products(product(rows_a, cross), rows_b)
    return torch.cat(found) - a.square_norms * b.square_norms  # the diagonals: 1 each, 0 for a row of zeros


def row_products(a: Tensor, b: Tensor) -> list[Tensor]:
    """Float64 inner products of row i of both, in blocks that stay in cache."""
    return [(x.double() * y.double()).sum(dim=1) for x, y in zip(a.split(FEW_ROWS), b.split(FEW_ROWS))]
