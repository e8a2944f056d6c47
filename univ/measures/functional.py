"""How alike the predictions of two models are: logits (N, C) of the same images -> score.

In: `Outputs` (logits and, for the measures that need them, labels) or bare logits, as tensors or arrays.
Probabilities are a softmax in float64: float32 ones saturate, and JSD becomes infinite.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, as_tensor, full_precision, undefined


@dataclass(frozen=True)
class Outputs:
    """Logits (N, C) of one model and labels (N,) of the same images, each as tensor or array."""

    logits: Rep
    labels: Rep | None = None


def disagreement(a: Rep, b: Rep) -> float:
    """Share of images with different predictions a, b (N,): in [0, 1], 0 = alike."""
    return disagreement_score(Pair(as_predictions(a), as_predictions(b)))


def normalized_disagreement(a: Rep, b: Rep, labels: Rep) -> float:
    """Disagreement of predictions a, b (N,) within the range that the two error rates allow.

    (dis - |e_a - e_b|) / (min(e_a + e_b, 1) - |e_a - e_b|): in [0, 1], 0 = as alike as the error rates permit.
    Nan, with an `UndefinedScore` warning, where they leave no room (a model without errors).

    Source: Klabunde et al., 2025 (ACM Computing Surveys), "min-max-normalized disagreement".
    """
    return normalized_disagreement_score(Pair(as_predictions(a, labels), as_predictions(b, labels)))


def kappa(a: Rep, b: Rep, num_classes: int | None = None) -> float:
    """Cohen's kappa of predictions a, b (N,): agreement beyond that expected from the class frequencies.

    (agreement - expected) / (1 - expected): at most 1 = alike, 0 = as expected by chance. Nan, with an
    `UndefinedScore` warning, if both always predict one and the same class.

    Source: Cohen, 1960.
    """
    return kappa_score(Pair(as_predictions(a, num_classes=num_classes), as_predictions(b, num_classes=num_classes)))


def jsd(a: Rep, b: Rep) -> float:
    """Mean Jensen-Shannon divergence, in nats, of the class probabilities of logits a, b (N, C): in [0, ln 2]."""
    return jsd_measure()(a, b)


def churn(a: Rep, b: Rep, alpha: float = 1.0) -> float:
    """Surrogate churn of logits a, b (N, C): in [0, C / 2], 0 = alike.

    sum over images and classes of |(p / max p)^alpha - (q / max q)^alpha| / (2N); for large alpha the churn
    (disagreement) itself.

    Source: Bhojanapalli et al., 2021 (arXiv 2102.03349).
    """
    return churn_measure(alpha=alpha)(a, b)


def ambiguity(predictions: Sequence[Rep]) -> float:
    """Share of images on which any two of the models differ, from their predictions (N,): in [0, 1].

    Source: Marx, Calmon and Ustun, ICML 2020, with every model in the place of the baseline.
    """
    return ambiguity_of([as_predictions(preds) for preds in predictions])


def discrepancy(predictions: Sequence[Rep]) -> float:
    """Largest disagreement between any two of the models, from their predictions (N,): in [0, 1].

    Source: Marx, Calmon and Ustun, ICML 2020, with every model in the place of the baseline.
    """
    return discrepancy_of([as_predictions(preds) for preds in predictions])


@dataclass(frozen=True)
class SetStatistic:
    """A number that a set of models has: `statistic(list of Outputs)`, or `compute` on their `Predictions`."""

    name: str
    prepare: Callable[[Outputs | Rep], "Predictions"]
    compute: Callable[[Sequence["Predictions"]], float]

    def __call__(self, outputs: Sequence[Outputs | Rep]) -> float:
        with full_precision():
            return self.compute([self.prepare(output) for output in outputs])


@dataclass(frozen=True)
class Predictions(Prepared):
    """Predicted classes (N,) int64 of one model, with the labels if they are known."""

    preds: Tensor
    num_classes: int
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.preds)

    def permute(self, order: Tensor) -> "Predictions":
        """The predictions of permuted images; `errors` stay those of the images that they were made for."""
        return self._permuted(preds=self.preds[order], labels=None if self.labels is None else self.labels[order])

    @property
    def error_rate(self) -> float:
        if self.labels is None:
            raise ValueError("this measure needs labels: pass Outputs(logits, labels)")
        return (self.preds != self.labels).double().mean().item()


@dataclass(frozen=True)
class Probabilities(Prepared):
    """(N, C) float64 class probabilities of one model, or values made of them."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def permute(self, order: Tensor) -> "Probabilities":
        return self._permuted(values=self.values[order])


@dataclass(frozen=True)
class Predict(Preparation):
    """Predicted class per image: the largest logit, the first of equal ones."""

    def prepare(self, outputs: Outputs | Rep) -> Predictions:
        outputs = as_outputs(outputs)
        logits = as_logits(outputs.logits)
        return as_predictions(logits.argmax(dim=1), outputs.labels, logits.shape[1])


@dataclass(frozen=True)
class Softmax(Preparation):
    """Class probabilities in float64."""

    def prepare(self, outputs: Outputs | Rep) -> Probabilities:
        return Probabilities(as_logits(as_outputs(outputs).logits).double().softmax(dim=1))


@dataclass(frozen=True)
class RelativeConfidence(Preparation):
    """(p / max p)^alpha = exp(alpha (logit - largest logit)) in float64."""

    alpha: float = 1.0

    def prepare(self, outputs: Outputs | Rep) -> Probabilities:
        logits = as_logits(as_outputs(outputs).logits).double()
        return Probabilities((self.alpha * (logits - logits.amax(dim=1, keepdim=True))).exp())


def as_outputs(outputs: Outputs | Rep) -> Outputs:
    """Outputs as they are, bare logits as Outputs without labels."""
    return outputs if isinstance(outputs, Outputs) else Outputs(outputs)


def as_logits(logits: Rep) -> Tensor:
    """Logits as a finite (N, C) tensor.

    Raises:
        ValueError: another shape, or NaN or infinite values.
    """
    logits = as_tensor(logits)
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"logits have one row per image and one column per class, got shape {tuple(logits.shape)}")
    if not logits.isfinite().all():
        row = int((~logits.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(f"the logits hold NaN or infinite values, first in row {row}")
    return logits


def as_predictions(preds: Rep, labels: Rep | None = None, num_classes: int | None = None) -> Predictions:
    """Predicted classes (N,) and labels (N,) as `Predictions`.

    Raises:
        ValueError: not whole numbers of classes in one dimension, or as many labels as predictions.
    """
    preds = as_tensor(preds)
    if preds.ndim != 1 or len(preds) == 0 or preds.is_floating_point():
        raise ValueError(f"predictions are one class index per image, got {preds.dtype} of shape {tuple(preds.shape)}")
    preds = preds.long()
    if labels is not None:
        labels = as_tensor(labels).long().to(preds.device)
        if labels.shape != preds.shape:
            raise ValueError(f"{len(preds)} predictions need as many labels, got shape {tuple(labels.shape)}")
    num_classes = num_classes or int(preds.max()) + 1
    if not 0 <= int(preds.min()) <= int(preds.max()) < num_classes:
        raise ValueError(
            f"class indices lie between 0 and {num_classes - 1}: found {int(preds.min())} to {int(preds.max())}"
        )
    return Predictions(preds, num_classes, labels)


def disagreement_score(pair: Pair) -> float:
    """Disagreement of two `Predictions`."""
    return (pair.a.preds != pair.b.preds).double().mean().item()


def normalized_disagreement_score(pair: Pair) -> float:
    """Normalised disagreement of two `Predictions` with labels."""
    a, b = pair.a.error_rate, pair.b.error_rate
    least, most = abs(a - b), min(a + b, 1.0)
    if not most > least:
        return undefined(f"normalised disagreement is not defined: error rates {a:.4g} and {b:.4g} leave no room")
    return (disagreement_score(pair) - least) / (most - least)


def kappa_score(pair: Pair) -> float:
    """Cohen's kappa of two `Predictions`."""
    n = len(pair.a)
    classes = max(pair.a.num_classes, pair.b.num_classes)
    frequencies = [torch.bincount(model.preds, minlength=classes).double() / n for model in (pair.a, pair.b)]
    expected = torch.dot(*frequencies).item()
    if not expected < 1:
        return undefined("kappa is not defined: both models always predict the same one class")
    return (1 - disagreement_score(pair) - expected) / (1 - expected)


def jsd_score(pair: Pair) -> float:
    """Mean Jensen-Shannon divergence of two `Probabilities`: H((p + q)/2) - (H(p) + H(q))/2."""
    a, b = pair.a.values, pair.b.values
    if a.shape != b.shape:
        raise ValueError(f"JSD needs the same classes in both models: got {a.shape[1]} and {b.shape[1]}")
    own = (pair.a.once_any_order(mean_entropy) + pair.b.once_any_order(mean_entropy)) / 2
    return max(0.0, entropy((a + b) / 2) / len(a) - own)  # rounding can dip below 0


def mean_entropy(probabilities: Probabilities) -> float:
    """Mean entropy in nats of `Probabilities`."""
    return entropy(probabilities.values) / len(probabilities)


def entropy(probs: Tensor) -> float:
    """Sum over rows of the entropy in nats of (N, C) float64 probabilities."""
    return torch.special.entr(probs).sum().item()


def churn_score(pair: Pair) -> float:
    """Surrogate churn of two `Probabilities` made by `RelativeConfidence`."""
    a, b = pair.a.values, pair.b.values
    if a.shape != b.shape:
        raise ValueError(f"churn needs the same classes in both models: got {a.shape[1]} and {b.shape[1]}")
    return (a - b).abs().sum().item() / (2 * len(a))


def ambiguity_of(models: Sequence[Predictions]) -> float:
    """Ambiguity of a set of `Predictions`."""
    preds = _stack(models)
    return (preds != preds[0]).any(dim=0).double().mean().item()


def discrepancy_of(models: Sequence[Predictions]) -> float:
    """Discrepancy of a set of `Predictions`."""
    preds = _stack(models)
    return max(((a != b).double().mean().item() for a, b in itertools.combinations(preds, 2)), default=math.nan)


def _stack(models: Sequence[Predictions]) -> Tensor:
    if len(models) < 2:
        raise ValueError(f"a set of at least two models is needed, got {len(models)}")
    if len({len(model) for model in models}) > 1:
        raise ValueError(f"the models need the same images, got {[len(model) for model in models]}")
    return torch.stack([model.preds for model in models])


def disagreement_measure() -> Measure:
    """Measure `dis`; see `disagreement`."""
    return Measure("dis", Predict(), disagreement_score, self_score=0.0, larger_is_closer=False)


def normalized_disagreement_measure() -> Measure:
    """Measure `norm`; see `normalized_disagreement`."""
    return Measure("norm", Predict(), normalized_disagreement_score, self_score=0.0, larger_is_closer=False)


def kappa_measure() -> Measure:
    """Measure `kappa`; see `kappa`."""
    return Measure("kappa", Predict(), kappa_score, self_score=1.0, larger_is_closer=True)


def jsd_measure() -> Measure:
    """Measure `jsd`; see `jsd`."""
    return Measure("jsd", Softmax(), jsd_score, self_score=0.0, larger_is_closer=False)


def churn_measure(*, alpha: float = 1.0) -> Measure:
    """Measure `churn`; see `churn`."""
    return Measure("churn", RelativeConfidence(alpha), churn_score, self_score=0.0, larger_is_closer=False)


def ambiguity_statistic() -> SetStatistic:
    """Statistic `amb`; see `ambiguity`."""
    return SetStatistic("amb", Predict(), ambiguity_of)


def discrepancy_statistic() -> SetStatistic:
    """Statistic `disc`; see `discrepancy`."""
    return SetStatistic("disc", Predict(), discrepancy_of)
