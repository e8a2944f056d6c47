"""How alike the predictions of two models are: logits (N, C) of the same images -> score.

In: `Outputs` (logits and, for the measures that need them, labels) or bare logits, as tensors or arrays; the functions
of predictions take the predicted classes (N,) instead.
Probabilities are a softmax in float64: float32 ones saturate, and JSD becomes infinite.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from univ.measures.base import Measure, Pair, Preparation, Prepared, Rep, as_tensor, full_precision, mean_of, undefined
from univ.measures.cards import ALL, PAPER, USUAL, register

T = TypeVar("T")
OF_PREDICTIONS = {"of": "outputs", "invariances": (*USUAL["outputs"], "confidence")}
_ROWS = 500  # images at a time where classes are summed: 4 MB at 1000 classes, which stays in cache


@dataclass(frozen=True)
class Outputs:
    """Logits (N, C) of one model and labels (N,) of the same images, each as tensor or array."""

    logits: Rep
    labels: Rep | None = None


@dataclass(frozen=True)
class SetStatistic:
    """A number that a set of models has: `statistic(list of Outputs)`, or `compute` on their `Predictions`."""

    prepare: Preparation
    compute: Callable[[Sequence["Predictions"]], float]
    name: str = ""  # as its `Card` says

    def __call__(self, outputs: Sequence[Outputs | Rep]) -> float:
        with full_precision():
            return self.compute([self.prepare(output) for output in outputs])


def one_minus(score: Any) -> Any:
    """Of a score, or a column of them."""
    return 1 - score


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


def error_consistency(a: Rep, b: Rep, labels: Rep) -> float:
    """Cohen's kappa of being right: do predictions a, b (N,) err on the same images more than their accuracies imply?

    (c - e) / (1 - e) with c the share of images on which both are right or both wrong and e = p q + (1 - p)(1 - q) its
    expectation from the accuracies p, q. At most 1 = alike, 0 = independent errors. Nan, with an `UndefinedScore`
    warning, if both are always right or always wrong.

    Source: Geirhos, Meding and Wichmann, NeurIPS 2020, equations 1 to 3.
    """
    return error_consistency_score(Pair(as_predictions(a, labels), as_predictions(b, labels)))


def capa(a: Rep, b: Rep, labels: Rep) -> float:
    """Chance-adjusted probabilistic agreement (kappa_p) of logits a, b (N, C).

    (c - e) / (1 - e) with c = mean over images of sum_o p_o q_o and e = p q + (1 - p)(1 - q) / (C - 1) for p, q the
    mean probabilities of the label: agreement beyond that of models which, when wrong, spread evenly. At most 1, which
    only one-hot probabilities reach; 0 = as expected. Nan, with an `UndefinedScore` warning, if both are always right.

    Raises ValueError for fewer than 2 classes. Source: Goel et al., ICML 2025 (Great models think alike …), section 2.
    """
    return capa_measure()(Outputs(a, labels), Outputs(b, labels))


def ambiguity(predictions: Sequence[Rep]) -> float:
    """Share of images on which any two of the models differ, from their predictions (N,): in [0, 1].

    Source: Marx, Calmon and Ustun, ICML 2020, with every model in the place of the baseline.
    """
    return ambiguity_of([as_predictions(preds) for preds in predictions])


def discrepancy(predictions: Sequence[Rep]) -> float:
    """Largest disagreement between any two of the models, from their predictions (N,): in [0, 1]; source as above."""
    return discrepancy_of([as_predictions(preds) for preds in predictions])


@register(
    "dis",
    "disagreement",
    label="agreement",
    similarity=one_minus,
    lists=PAPER,
    range=(0, 1),
    **OF_PREDICTIONS,
    larger_is_closer=False,
)
def disagreement_measure() -> Measure:
    """See `disagreement`."""
    return Measure(Predict(), disagreement_score, bootstrap=True, per_image=differs)


@register(
    "norm",
    "norm_dis",
    "norm_dis",
    "1 - normalised disagreement",
    one_minus,
    lists=ALL,
    range=(0, 1),
    **OF_PREDICTIONS,
    larger_is_closer=False,
)
def normalized_disagreement_measure() -> Measure:
    """See `normalized_disagreement`."""
    return Measure(Predict(), normalized_disagreement_score, bootstrap=True)


@register("kappa", label="Cohen's kappa", lists=ALL, range=(-1, 1), **OF_PREDICTIONS)
def kappa_measure() -> Measure:
    """See `kappa`."""
    return Measure(Predict(), kappa_score, bootstrap=True)


@register(
    "jsd",
    of="outputs",
    label="JSDSim",
    similarity=lambda divergence: 1 - divergence / math.log(2),
    lists=PAPER,
    larger_is_closer=False,
    range=(0, math.log(2)),
)
def jsd_measure() -> Measure:
    """See `jsd`."""
    return Measure(Softmax(), mean_of(jsd_per_image), bootstrap=True, per_image=jsd_per_image)


@register("churn", of="outputs", label="1 - surrogate churn", similarity=one_minus, lists=ALL, larger_is_closer=False)
def churn_measure(*, alpha: float = 1.0) -> Measure:
    """See `churn`."""
    return Measure(RelativeConfidence(alpha), mean_of(churn_per_image), bootstrap=True, per_image=churn_per_image)


@register("error_consistency", range=(-1, 1), **OF_PREDICTIONS)
def error_consistency_measure() -> Measure:
    """See `error_consistency`."""
    return Measure(Predict(), error_consistency_score, bootstrap=True)


@register("capa", of="outputs", varies=True, range=(-math.inf, 1))
def capa_measure() -> Measure:
    """See `capa`."""
    return Measure(Softmax(labelled=True), capa_score, bootstrap=True)


@register("amb", "ambiguity", of="outputs", per="set", lists=ALL)
def ambiguity_statistic() -> SetStatistic:
    """See `ambiguity`."""
    return SetStatistic(Predict(), ambiguity_of)


@register("disc", "discrepancy", "dis", of="outputs", per="set", lists=ALL)
def discrepancy_statistic() -> SetStatistic:
    """See `discrepancy`."""
    return SetStatistic(Predict(), discrepancy_of)


@dataclass(frozen=True)
class Predictions(Prepared):
    """Predicted classes (N,) int64 of one model, with the labels if they are known."""

    preds: Tensor
    num_classes: int
    labels: Tensor | None = None
    by_image = ("preds", "labels")

    @property
    def right(self) -> Tensor:
        """(N,) whether the prediction is the label."""
        return self.preds == known(self.labels)

    @property
    def error_rate(self) -> float:
        return (~self.right).double().mean().item()


@dataclass(frozen=True)
class Probabilities(Prepared):
    """(N, C) float64 class probabilities of one model, or values made of them; with the labels where they count."""

    values: Tensor
    labels: Tensor | None = None
    by_image = ("values", "labels")

    @property
    def accuracy(self) -> float:
        """Mean probability of the label."""
        return self.values.gather(1, self.labels[:, None]).mean().item()


@dataclass(frozen=True)
class Predict(Preparation):
    """Predicted class per image: the largest logit, the first of equal ones."""

    def prepare(self, outputs: Outputs | Rep) -> Predictions:
        logits, preds, labels = unpack(outputs)
        return as_predictions(preds, labels, logits.shape[1])


@dataclass(frozen=True)
class Softmax(Preparation):
    """Class probabilities in float64, with the labels where they are needed."""

    labelled: bool = False

    def prepare(self, outputs: Outputs | Rep) -> Probabilities:
        logits, _, labels = unpack(outputs)
        probabilities = logits.softmax(dim=1, dtype=torch.float64)
        if not self.labelled:
            return Probabilities(probabilities)
        if logits.shape[1] < 2:
            raise ValueError("CAPA needs at least 2 classes")
        labels = as_predictions(known(labels), num_classes=logits.shape[1]).preds
        if len(labels) != len(logits):
            raise ValueError(f"{len(logits)} logits need as many labels, got {len(labels)}")
        return Probabilities(probabilities, labels.to(logits.device))


@dataclass(frozen=True)
class RelativeConfidence(Preparation):
    """(p / max p)^alpha = exp(alpha (logit - largest logit)) in float64."""

    alpha: float = 1.0

    def prepare(self, outputs: Outputs | Rep) -> Probabilities:
        logits, preds, _ = unpack(outputs)
        logits = logits.double()
        return Probabilities((self.alpha * (logits - logits.gather(1, preds[:, None]))).exp())


def known(labels: T | None) -> T:
    """The labels, for a measure that needs them."""
    if labels is None:
        raise ValueError("this measure needs labels: pass Outputs(logits, labels), or labels=")
    return labels


def unpack(outputs: Outputs | Rep) -> tuple[Tensor, Tensor, Rep | None]:
    """Logits (N, C), the class (N,) of the largest in each row, the first of equal ones, and the labels if known.

    A logit of minus infinity (a class ruled out) is allowed.

    Raises:
        ValueError: logits of another shape, or a row whose largest value is NaN or infinite.
    """
    outputs = outputs if isinstance(outputs, Outputs) else Outputs(outputs)
    logits = as_tensor(outputs.logits)
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"logits have one row per image and one column per class, got shape {tuple(logits.shape)}")
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        preds = torch.from_numpy(logits.numpy().argmax(axis=1))  # five times as fast as torch's on the CPU
    else:
        preds = logits.argmax(dim=1)
    finite = logits.gather(1, preds[:, None]).isfinite()  # NaN counts as the largest
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(f"the logits hold NaN or infinite values, first in row {row}")
    return logits, preds, outputs.labels


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


def differs(pair: Pair) -> Tensor:
    """(N,) float64 1 where two `Predictions` differ, else 0."""
    return (pair.a.preds != pair.b.preds).double()


disagreement_score = mean_of(differs)


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
    return beyond(expected, 1 - disagreement_score(pair), "kappa", "both models always predict the same one class")


def error_consistency_score(pair: Pair) -> float:
    """Error consistency of two `Predictions` with labels."""
    p, q = 1 - pair.a.error_rate, 1 - pair.b.error_rate
    observed = (pair.a.right == pair.b.right).double().mean().item()
    expected = p * q + (1 - p) * (1 - q)
    return beyond(expected, observed, "error consistency", "both models are always right, or always wrong")


def capa_score(pair: Pair) -> float:
    """CAPA of two `Probabilities` with labels."""
    a, b = same_classes(pair, "CAPA")
    p, q = pair.a.accuracy, pair.b.accuracy
    expected = p * q + (1 - p) * (1 - q) / (a.shape[1] - 1)
    observed = (a * b).sum().item() / len(a)
    return beyond(expected, observed, "CAPA", "both models are always right, and certain of it")


def beyond(expected: float, observed: float, name: str, reason: str) -> float:
    """(observed - expected) / (1 - expected) of an agreement; nan with the reason where all of it is expected."""
    if not expected < 1:
        return undefined(f"{name} is not defined: {reason}")
    return (observed - expected) / (1 - expected)


def same_classes(pair: Pair, name: str) -> tuple[Tensor, Tensor]:
    """The values of two `Probabilities` of the same classes."""
    a, b = pair.a.values, pair.b.values
    if a.shape != b.shape:
        raise ValueError(f"{name} needs the same classes in both models: got {a.shape[1]} and {b.shape[1]}")
    return a, b


def jsd_per_image(pair: Pair) -> Tensor:
    """(N,) float64 Jensen-Shannon divergence of two `Probabilities`: H((p + q)/2) - (H(p) + H(q))/2."""
    a, b = same_classes(pair, "JSD")
    together = torch.cat([torch.special.entr((p + q) / 2).sum(dim=1) for p, q in zip(a.split(_ROWS), b.split(_ROWS))])
    own = (pair.a.once(entropy) + pair.b.once(entropy)) / 2
    return (together - own).clamp(min=0)  # rounding can dip below 0


def entropy(probabilities: Probabilities) -> Tensor:
    """(N,) float64 entropy in nats of `Probabilities`."""
    return torch.cat([torch.special.entr(probs).sum(dim=1) for probs in probabilities.values.split(_ROWS)])


def churn_per_image(pair: Pair) -> Tensor:
    """(N,) float64 half the summed differences of two `Probabilities` made by `RelativeConfidence`."""
    a, b = same_classes(pair, "churn")
    return torch.cat([(p - q).abs_().sum(dim=1) / 2 for p, q in zip(a.split(_ROWS), b.split(_ROWS))])


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
