"""Where representations come from: what a file of them says, whatever its format; what may be compared with what."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from torch import Tensor

from univ.errors import InputError

MODEL = ("arch", "node", "checkpoint")  # what tells one model from another


@dataclass(frozen=True)
class Inputs:
    """Which images, in which order and how prepared: equal for two representations that may be compared."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    fingerprint: str
    transform: str
    indices: str
    n: Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Identity:
    """Where a cached tensor comes from: the inputs, the architecture's node, the weights and the arithmetic."""

    inputs: Inputs
    arch: str
    node: str
    checkpoint: str
    precision: str = "fp32"


def hash_indices(indices: Tensor) -> str:
    """A short hash of an index vector, sensitive to order."""
    return hashlib.sha256(np.ascontiguousarray(indices.numpy(), dtype="<i8").tobytes()).hexdigest()[:16]


def require_same(mine: Inputs | Identity, other: Inputs | Identity, what: str) -> None:
    """Refuse a comparison of what was made from different inputs.

    Raises:
        InputError: names the fields in which the two differ.
    """
    if differing := _differing(_flat(mine), _flat(other)):
        raise InputError(f"{what} were not made from the same inputs: they differ in {differing}")


def differing_models(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what the models of two descriptions differ, such as `node (avgpool and head)`, as far as both say."""
    known = [key for key in MODEL if mine.get(key) and other.get(key)]
    return _differing({key: mine[key] for key in known}, other)


def _flat(identity: Inputs | Identity) -> dict[str, Any]:
    values = asdict(identity)
    return values.pop("inputs", {}) | values


def _differing(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} ({mine[key]} and {other[key]})" for key in mine if mine[key] != other[key])
