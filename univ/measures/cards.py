"""What is known of each measure besides its formula, as data beside it: its card.

A module of this folder registers the factory of a measure together with its card, and that is all there is to a new
one: scripts, result files, figures and tests read the cards.
"""

import functools
import importlib
import inspect
import math
import operator
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

ORDER = (
    *("mag", "con", "cos", "jacc", "rank", "rank_jacc", "proc", "shape", "cka", "gulp", "rtd"),
    *("mutual_knn", "cknna", "cka_biased", "cka_rbf", "linreg", "svcca", "pwcca", "rsa", "rtd_lite"),
    *("hard_match", "soft_match", "perm_proc", "aligned_cos", "dcor", "eos", "rsm_norm", "uniformity", "imd"),
    *("dis", "norm", "kappa", "jsd", "churn", "amb", "disc", "error_consistency", "capa"),
)
"""The order of the command line; measures that are not named follow."""
FIGURES = ("cka", "proc", "rtd", "jacc", "rank", "rank_jacc", "cos", "gulp", "shape")
"""The order of the figures; measures that are not named follow in that of the command line."""

INVARIANCES = {
    "permutation": "the columns in another order",
    "orthogonal": "a rotation or reflection of the columns",
    "scaling": "all columns times one number",
    "translation": "a constant added to each column",
    "padding": "more columns, of zeros",
    "linear": "any invertible linear map of the columns",
    "classes": "the classes of both models in another order",
    "shift": "a constant added to the logits of an image",
    "confidence": "logits times a positive number: only the predicted class counts",
}
"""What may be done to one of two models, representation or logits, without changing the score."""
USUAL = {"reps": ("permutation", "orthogonal", "scaling", "translation", "padding"), "outputs": ("classes", "shift")}
PAPER, ALL, MORE = ("paper", "all"), ("all",), ("more",)


def _itself(score: Any) -> Any:
    return score


@dataclass(frozen=True)
class Card:
    """One measure.

    Attributes:
        key: what the command line calls it.
        folder, file: results/<folder>/.../<file>_...csv, as published; by default the key.
        label: how figures call `similarity`; empty for measures that they do not draw.
        similarity: score, or a column of them -> larger is more alike; by default the score, minus it for a distance.
        make: its settings, by keyword -> `Measure`, `Statistic` or `SetStatistic`.
        of: what it compares: `reps` (rep.py) or `outputs` (func.py).
        per: one score per `pair` of models, per `model` (mag, con) or per `set` of models (amb, disc).
        lists: what it is part of: `paper` (the study's figures), `all` (the original's list), `more` (beyond both).
        neighbors: it takes k and a neighbour function, `euc` or `cos_sim`, that names a folder of its files.
        centered: the file's name tells centred (`mean_`) from uncentred representations, by default of pairs of reps.
        normalized: the file's name tells normalised (`norm_`) from unnormalised representations.
        maps: it reads activations (N, C, H, W) that are not flattened.
        names: setting -> its name in records and among the scripts' options, where that is another.
        larger_is_closer: True for similarities, False for distances.
        varies: what a model scores against itself depends on the model; else it is 1, or 0 for distances.
        symmetric: False if swapping the models changes the score.
        range: the least and the largest score there can be; by default from 0 to 1, or without end for distances.
        invariances: those of `INVARIANCES` that it has, with its default settings: none but these. By default the
            usual ones of representations or outputs.
    """

    key: str
    folder: str = ""
    file: str = ""
    label: str = ""
    similarity: Callable[[Any], Any] | None = None
    make: Callable[..., Any] | None = None
    of: Literal["reps", "outputs"] = "reps"
    per: Literal["pair", "model", "set"] = "pair"
    lists: tuple[str, ...] = MORE
    neighbors: bool = False
    centered: bool | None = None
    normalized: bool = False
    maps: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    larger_is_closer: bool = True
    varies: bool = False
    symmetric: bool = True
    range: tuple[float, float] | None = None
    invariances: Collection[str] | None = None

    def __post_init__(self) -> None:
        closer = self.larger_is_closer
        defaults = {
            "folder": self.folder or self.key,
            "file": self.file or self.key,
            "similarity": _itself if closer else operator.neg,
            "centered": self.of == "reps" and self.pairs,
            "range": (0, 1) if closer else (0, math.inf),
            "invariances": USUAL[self.of],
        }
        for name, value in defaults.items():
            if getattr(self, name) in (None, ""):
                object.__setattr__(self, name, value)

    @property
    def self_score(self) -> float | None:
        """What a model scores against itself; None where that depends on the model."""
        return None if self.varies else float(self.larger_is_closer)

    @property
    def pairs(self) -> bool:
        """Whether it scores pairs of models."""
        return self.per == "pair"

    @property
    def studied(self) -> bool:
        """Whether it is one of the study's measures, whose results may be published ones."""
        return "more" not in self.lists

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options, by their names in flags and records, that the measure takes."""
        known = {self.names.get(name, name) for name in inspect.signature(self.make).parameters}
        return {name: value for name, value in options.items() if name in known}

    def build(self, options: Mapping[str, Any]) -> Any:
        """The measure with those of the options that it takes."""
        inside = {outside: name for name, outside in self.names.items()}
        return self.make(**{inside.get(name, name): value for name, value in self.settings(options).items()})


CARDS: dict[str, Card] = {}
"""Every measure, in the order of the command line."""


def register(*names: Any, **facts: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give a factory its card, made of these arguments; what it returns takes name and facts on scores from it."""

    def decorate(make: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(make)
        def factory(*args: P.args, **settings: P.kwargs) -> T:
            about = ("self_score", "larger_is_closer", "symmetric") if card.pairs else ()
            return replace(make(*args, **settings), name=card.key, **{name: getattr(card, name) for name in about})

        card = Card(*names, make=factory, **facts)
        CARDS[card.key] = card
        for key in sorted(CARDS, key=_place(ORDER)):
            CARDS[key] = CARDS.pop(key)
        return factory

    return decorate


def as_function(make: Callable[P, Any], name: str) -> Callable[Concatenate[Any, Any, P], float]:
    """The factory of a measure as a function of two models: (x, y, settings by keyword) -> score."""

    def function(x: Any, y: Any, *args: P.args, **settings: P.kwargs) -> float:
        return make(*args, **settings)(x, y)

    models = [inspect.Parameter(model, inspect.Parameter.POSITIONAL_OR_KEYWORD) for model in "xy"]
    settings = inspect.signature(make).parameters.values()
    function.__signature__ = inspect.Signature([*models, *settings], return_annotation=float)
    function.__name__ = function.__qualname__ = name
    function.__module__, function.__doc__ = make.__module__, make.__doc__
    return function


def build(registry: Mapping[str, Callable[..., T]], keys: Iterable[str], **settings: Any) -> list[T]:
    """Measures `keys` of a registry, each with those of the settings that it knows.

    Raises:
        ValueError: an unknown key, or a setting that no measure of this registry knows.
    """
    known = {key: inspect.signature(factory).parameters for key, factory in registry.items()}
    if unknown := set(settings).difference(*known.values()):
        raise ValueError(f"no measure has the settings {sorted(unknown)}")
    built = []
    for key in keys:
        if key not in registry:
            raise ValueError(f"unknown measure {key!r}: choose from {', '.join(registry)}")
        built.append(registry[key](**{name: value for name, value in settings.items() if name in known[key]}))
    return built


def find_modules() -> None:
    """Import all modules of this folder: a measure is there when its module is."""
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def find_card(key: str) -> Card:
    """The measure's card; one that is not registered has folder and file named as its key, and may be asymmetric."""
    return CARDS.get(key, Card(key, symmetric=False))


def _place(order: Sequence[str]) -> Callable[[str], int]:
    return lambda key: order.index(key) if key in order else len(order)


class Selection(Mapping[str, T]):
    """Some of the cards, or their factories, by key: a view, so that a measure registered later is in it."""

    def __init__(self, chosen: Callable[[Card], bool], value: Callable[[Card], T], first: Sequence[str] = ()) -> None:
        self._chosen, self._value, self._first = chosen, value, first

    def __getitem__(self, key: str) -> T:
        if key not in CARDS or not self._chosen(CARDS[key]):
            raise KeyError(key)
        return self._value(CARDS[key])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(filter(lambda key: self._chosen(CARDS[key]), CARDS), key=_place(self._first)))

    def __len__(self) -> int:
        return sum(map(self._chosen, CARDS.values()))


SHOWN: Mapping[str, Card] = Selection(lambda card: bool(card.label), lambda card: card, FIGURES)
"""The measures that figures draw, in their order."""


def in_study(of: str) -> tuple[str, ...]:
    """The measures of the study's figures, of `reps` or of `outputs`, in the order of the figures."""
    return tuple(key for key, card in SHOWN.items() if card.of == of and "paper" in card.lists)


def _factories(of: str, statistics: bool, studied: bool = True) -> Mapping[str, Callable[..., Any]]:
    wanted = (of, not statistics, studied)
    return Selection(lambda card: (card.of, card.pairs, card.studied) == wanted, lambda card: card.make)


# Command-line key -> factory. A factory takes its settings by keyword and returns a Measure (or a statistic).
REP_STATISTICS = _factories("reps", statistics=True)
REP_MEASURES = _factories("reps", statistics=False)
MORE_REP_MEASURES = _factories("reps", statistics=False, studied=False)
FUNC_MEASURES = _factories("outputs", statistics=False)
MORE_FUNC_MEASURES = _factories("outputs", statistics=False, studied=False)
FUNC_STATISTICS = _factories("outputs", statistics=True)
