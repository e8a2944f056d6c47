"""Checkpoint files: weights of any published layout in, the published layout out, and all that a resumed run needs."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn

from univ import files
from univ.errors import InputError
from univ.files import safeload, schemas

LATEST, BEST = "checkpoint.pt.latest", "checkpoint.pt.best"


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """A whole checkpoint, on the CPU.

    Returns:
        The file's dict. "model" holds a `Classifier`'s state dict: `model.<k>` for the network's weights and, where
        the file has them, `normalizer.new_mean` and `normalizer.new_std`. Other entries are as saved ("optimizer",
        "schedule", "epoch", "nat_prec1", "adv_prec1", ...), those of foreign classes as placeholders.

    Raises:
        FileNotFoundError: no such file.
        InputError: damaged, or without weights.
    """
    content = _load(path, mmap=False)
    named = {name: content[name] for name in schemas.CheckpointFields.model_fields if name in content}
    fields = schemas.validate(named, schemas.CheckpointFields, path)
    return content | {"epoch": fields.epoch} if "epoch" in content else content


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Only the weights of a checkpoint: `load_checkpoint(path)["model"]` without reading the optimiser's state."""
    return _load(path, mmap=True)["model"]


def read_about(path: Path | str) -> dict[str, Any]:
    """What a checkpoint says of itself: `arch` and `train_set`, as far as it does."""
    content = _load(path, mmap=True)
    return {name: content[name] for name in ("arch", "train_set") if isinstance(content.get(name), str)}


def _load(path: Path | str, *, mmap: bool) -> dict[str, Any]:
    content = safeload.load(path, what="checkpoint", mmap=mmap)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}: expected a checkpoint, a dict with the weights")
    key = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    state = content if key is None else content[key]
    if not state or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} holds no weights: expected them under 'model' or 'state_dict'")
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        found = f"{others[0]!r} is {str(state[others[0]])[:100]}"
        raise InputError(f"{path} holds no weights under 'model' or 'state_dict': {found}, expected a plain tensor")
    rest = {} if key is None else {name: value for name, value in content.items() if name != key}
    return {**rest, "model": _classifier_state(dict(state), path)}


def _classifier_state(state: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """Rename weights of any published layout to a `Classifier`'s.

    `module.` (data-parallel training) and `_orig_mod.` (torch.compile) go where every name has them; the attacker's
    second copy of model and statistics goes after it was found equal; `model.` or `model.model.` goes from the
    network's weights.
    """
    for prefix in ("module.", "_orig_mod."):
        state = _without_prefix(state, prefix)
    attacker = {name.removeprefix("attacker."): value for name, value in state.items() if name.startswith("attacker.")}
    state = {name: value for name, value in state.items() if not name.startswith("attacker.")}
    for name, value in attacker.items():
        first = state.setdefault(re.sub(r"^normalize\.", "normalizer.", name), value)
        same_memory = first.data_ptr() == value.data_ptr() and first.shape == value.shape
        if not same_memory and (first.dtype != value.dtype or not torch.equal(first, value)):
            raise InputError(f"{path} holds two different values of the weight {name!r}")
    statistics = {name: value for name, value in state.items() if name.startswith("normalizer.")}
    network = {name: value for name, value in state.items() if name not in statistics}
    return {**statistics, **{f"model.{name}": value for name, value in _bare(network).items()}}


def _bare(network: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A network's weights without the names of what may be wrapped around it."""
    for prefix in ("model.", "module.", "_orig_mod.", "model."):
        network = _without_prefix(network, prefix)
    return network


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_weights(classifier: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy a state dict from `load_checkpoint` or `read_weights` into a classifier; every weight must match.

    Weights that a library translates itself, and those that are called otherwise but agree in number, order and shape,
    are renamed, with a line in the log.

    Raises:
        InputError: another number of classes, or a missing, unexpected or differently shaped weight; names it.
    """
    own = classifier.state_dict()
    state = _renamed(classifier, own, dict(state), source)
    for name in own:  # files without pixel statistics, or from before batch norm counted its batches
        if name.startswith("normalizer.") or name.endswith(".num_batches_tracked"):
            state.setdefault(name, own[name])
    head = f"model.{classifier.spec.head}.weight"
    same_width = head in state and state[head].shape[1:] == own[head].shape[1:]  # else it is another architecture
    if same_width and len(state[head]) != classifier.num_classes:
        raise InputError(
            f"{source} has {len(state[head])} classes, expected the {classifier.num_classes} of "
            f"{classifier.train_set or classifier.arch}: was it trained on another data set?"
        )
    pairs = {name.removeprefix("model."): (state[name], own[name]) for name in own if name in state}
    differing = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape:": [
            f"{name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
            for name, (theirs, ours) in pairs.items()
            if theirs.shape != ours.shape
        ],
        "of another kind:": [
            f"{name} is {theirs.dtype}, not {ours.dtype}"
            for name, (theirs, ours) in pairs.items()
            if theirs.is_floating_point() != ours.is_floating_point()
        ],
    }
    for_what = f" for {classifier.train_set}" if classifier.train_set else ""
    if problems := "; ".join(f"{kind} {_some(names)}" for kind, names in differing.items() if names):
        raise InputError(
            f"{source} holds no weights of {classifier.arch}{for_what}: {problems} (another architecture? see -m)"
        )
    classifier.load_state_dict(state)


def _renamed(
    classifier: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor], source: Path | str
) -> dict[str, Tensor]:
    """The weights under the classifier's names, if they go by others."""
    names = {name.removeprefix("model."): name for name in own if name.startswith("model.")}
    network = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    bare = dict(zip(_bare(names), names))  # a network that is itself called model or module within what wraps it
    statistics = {name: value for name, value in state.items() if not name.startswith("model.")}
    network = {bare.get(name, name): value for name, value in network.items()}

    def fits(candidate: Mapping[str, Tensor]) -> bool:
        needed = [name for name in names if not name.endswith(".num_batches_tracked")]
        return candidate.keys() <= names.keys() and all(
            name in candidate and candidate[name].shape == own[names[name]].shape for name in needed
        )

    if not fits(network) and classifier.spec.convert is not None:
        converted = classifier.spec.convert(network)
        if fits(converted):
            logger.info("{}: weights as others publish them, translated for {}", source, classifier.arch)
            network = dict(converted)
    if not fits(network) and (pairs := _by_order(network, {name: own[names[name]] for name in names})):
        differing = [pair for pair in pairs if pair[0] != pair[1]]
        words = "{}: {} of {} tensors are called otherwise than in {}; matched by their order, as all {} shapes agree "
        words += "(the first: {} is {})"
        logger.warning(words, source, len(differing), len(pairs), classifier.arch, len(pairs), *differing[0])
        network = {mine: network[theirs] for theirs, mine in pairs}
    return statistics | {f"model.{name}": value for name, value in network.items()}


def _by_order(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Pairs of names, the tensors being the same in number, order, shape and kind of number; none where they are not.

    Their roles, which the last part of a name tells (weight, bias, running_mean), have to agree as well: a batch norm
    has four vectors of one shape. So has a name that both have: it must not go to another place.
    """

    def counted(tensors: Mapping[str, Tensor]) -> list[str]:  # not how many batches a norm has seen: old files lack it
        return [name for name in tensors if not name.endswith("num_batches_tracked")]

    pairs = list(zip(counted(theirs), counted(mine)))
    same = len(counted(theirs)) == len(counted(mine)) and all(
        theirs[a].shape == mine[b].shape
        and theirs[a].is_floating_point() == mine[b].is_floating_point()
        and a.rpartition(".")[2] == b.rpartition(".")[2]
        and (a == b or (a not in mine and b not in theirs))
        for a, b in pairs
    )
    return pairs if same else []


def _some(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(name.removeprefix("model.") for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def save_checkpoint(
    path: Path | str,
    classifier: nn.Module,
    *,
    epoch: int,
    optimizer: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    **entries: Any,
) -> None:
    """Write a checkpoint in the published layout, so that the `robustness` tools read it too; atomically.

    The attacker's copies share their memory with the model's weights and take no space in the file.

    Args:
        epoch: epochs completed, from 1.
        optimizer, schedule: their state dicts.
        entries: whatever else it is to hold, as `nat_prec1` and `adv_prec1`, the clean and the robust accuracy in
            percent; plain values and tensors only, as nothing else can be read back.

    Raises:
        InputError: the file cannot be written.
    """
    network, statistics = classifier.model.state_dict(), classifier.normalizer.state_dict()
    state: dict[str, Tensor] = {}
    for prefix, normalizer in (("", "normalizer"), ("attacker.", "normalize")):
        state |= {f"module.{prefix}{normalizer}.{name}": value for name, value in statistics.items()}
        state |= {f"module.{prefix}model.{name}": value for name, value in network.items()}
    about = {"optimizer": optimizer, "schedule": schedule, "epoch": epoch, "amp": None}
    files.save_torch(path, {"model": state, **about, **entries})


def newest_readable(folder: Path | str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to resume from: `checkpoint.pt.latest`, or, where it is damaged, the readable one of most epochs.

    Raises:
        FileNotFoundError: the folder holds no checkpoint of a training run.
        InputError: none of them can be read.
    """
    folder = Path(folder)
    others = [*folder.glob("*_checkpoint.pt"), folder / BEST]
    paths = [path for path in (folder / LATEST, *others) if path.exists()]
    if not paths:
        raise FileNotFoundError(f"no {LATEST} in {folder} to resume from")
    newest: tuple[Path, dict[str, Any]] | None = None
    for path in paths:
        try:
            checkpoint = load_checkpoint(path)
        except InputError as error:
            logger.warning("skipping a checkpoint: {}", error)
            continue
        if newest is None or epochs_of(checkpoint) > epochs_of(newest[1]):
            newest = path, checkpoint
        if path.name == LATEST:
            break
    if newest is None:
        raise InputError(f"none of the checkpoints in {folder} can be read: {', '.join(path.name for path in paths)}")
    return newest


def epochs_of(checkpoint: Mapping[str, Any]) -> int:
    """How many epochs a checkpoint has behind it; 0 where it does not say."""
    return checkpoint.get("epoch") or 0


def random_state() -> dict[str, Any]:
    """State of every global generator, as plain values that a checkpoint can hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Undo everything drawn since `random_state`; generators of devices that are not here are left alone."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)
