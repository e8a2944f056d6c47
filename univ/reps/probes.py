"""Linear probes on stored representations: train several at once, keep the best, predict.

Representations (N, D) and labels in, weight (C, D) and bias (C,) out. The matrix stays on the device when it fits
there; else it is read in large slices, gathered ahead of time. Either way the result is the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from univ import files
from univ.data.loaders import stream
from univ.errors import InputError
from univ.files import safeload, schemas

SLICE_BATCHES = 64  # batches read at once; at 1024 x 2048 float32 half a gigabyte
PREDICT_ROWS = 16_384
MIN_LR = 1e-6
BEST_ACCURACY, BEST_LOSS = "best_acc_checkpoint.pt", "best_loss_checkpoint.pt"
FREE_SHARE = 0.8  # of the device's free memory that the training matrix may take


@dataclass(frozen=True)
class Training:
    """How probes are trained; the study's settings, except that it trains 30 epochs."""

    epochs: int = 10
    batch_size: int = 1024  # rows per step and probe
    lr: float = 5e-3  # Adam's; falls to `MIN_LR` on a cosine, epoch by epoch
    seed: int = 0  # of the order in which slices of the data come, which all probes share

    def lr_in(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return MIN_LR + (self.lr - MIN_LR) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


@dataclass(frozen=True)
class Labelled:
    """Representations (N, D), any floating type, possibly memory-mapped, and their labels (N,) int64."""

    reps: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Probe:
    """A linear layer and how good it is on the validation part."""

    weight: Tensor  # (C, D) float32 on the CPU
    bias: Tensor  # (C,)
    seed: int  # of its initial weights and its order within a slice
    epoch: int  # epochs completed, from 1
    accuracy: float
    loss: float  # mean cross-entropy in nats


@dataclass(frozen=True)
class Epoch:
    """The state after an epoch: a `Probe` per seed, their mean training losses, and those of each step, (steps, P)."""

    number: int
    lr: float
    probes: list[Probe]
    train_losses: list[float]
    step_losses: Tensor


def initial_weights(dim: int, num_classes: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Weights (P, D, C) and biases (P, 1, C), drawn as nn.Linear does: uniform within 1 / sqrt(D)."""
    weights, biases = [], []
    for seed in seeds:
        generator, bound = stream("probe weights", seed), 1 / math.sqrt(dim)
        weights.append(torch.empty(dim, num_classes).uniform_(-bound, bound, generator=generator))
        biases.append(torch.empty(1, num_classes).uniform_(-bound, bound, generator=generator))
    return torch.stack(weights), torch.stack(biases)


def _fits(reps: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return False  # on the CPU a memory-mapped matrix stays on the disk, an ordinary one is there already
    free, _ = torch.cuda.mem_get_info(device)
    return reps.numel() * reps.element_size() <= FREE_SHARE * free


def _slices(reps: Tensor, order: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Rows `order[i]` of the matrix on the device, slice by slice; the next one is gathered while one is used."""
    if reps.is_cuda:
        for rows in order:
            yield reps[rows.to(device)]
        return
    pin = device.type == "cuda"

    def gather(rows: Tensor) -> Tensor:
        out = torch.empty((len(rows), reps.shape[1]), dtype=reps.dtype, pin_memory=pin)
        return torch.index_select(reps, 0, rows, out=out)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(gather, order[0])
        for following in (*order[1:], None):
            ready = ahead.result()
            if following is not None:
                ahead = pool.submit(gather, following)
            yield ready.to(device, non_blocking=pin)  # PyTorch frees pinned memory only after the copy is through


def train(
    train_part: Labelled,
    val_part: Labelled,
    num_classes: int,
    seeds: Sequence[int],
    settings: Training,
    *,
    device: torch.device,
    resident: bool | None = None,
    quiet: bool = True,
) -> Iterator[Epoch]:
    """Train one probe per seed, all in one pass over the data, and give out their state after each epoch.

    Each probe has its own weights and its own order of rows within a slice of the data, both from its seed: it is the
    same whether trained alone or with others (up to the rounding of a batched matrix product). The slices, and the rows
    in each, are drawn anew every epoch and shared by all probes.

    Args:
        device: where the arithmetic happens, in float32.
        resident: keep the matrix on the device; default: if it fits there.

    Raises:
        InputError: a label is not in [0, C), training and validation representations differ in width, or a loss
            becomes NaN or infinite.
    """
    parts = {"training": train_part, "validation": val_part}
    for what, part in parts.items():
        low, high = (int(bound) for bound in part.labels.aminmax())
        if low < 0 or high >= num_classes:
            raise InputError(f"{what} labels run from {low} to {high}, expected 0 to {num_classes - 1}")
    dim = train_part.reps.shape[1]
    if val_part.reps.shape[1] != dim:
        raise InputError(f"training representations have {dim} columns, validation ones {val_part.reps.shape[1]}")
    reps, labels = train_part.reps, train_part.labels
    if resident if resident is not None else _fits(reps, device):
        reps = reps.to(device)
    weights, biases = (values.to(device).requires_grad_() for values in initial_weights(dim, num_classes, seeds))
    optimizer = torch.optim.Adam([weights, biases], lr=settings.lr, fused=device.type == "cuda")
    batch = settings.batch_size
    bar = tqdm(total=settings.epochs * len(labels), desc="probes", unit="img", unit_scale=True, disable=quiet)
    with bar:
        for number in range(settings.epochs):
            lr = settings.lr_in(number)
            for group in optimizer.param_groups:
                group["lr"] = lr
            shuffled = torch.randperm(len(labels), generator=stream("probe slices", settings.seed, number))
            order = shuffled.split(batch * SLICE_BATCHES)
            within = [stream("probe order", seed, number) for seed in seeds]
            total, steps = torch.zeros(len(seeds), dtype=torch.float64, device=device), []
            for rows, values in zip(order, _slices(reps, order, device)):
                of_slice = labels[rows].to(device)
                mixed = torch.stack([torch.randperm(len(rows), generator=generator) for generator in within])
                for chosen in mixed.to(device).split(batch, dim=1):  # (P, B): each probe its own rows
                    steps.append(_step(optimizer, weights, biases, values[chosen], of_slice[chosen]))
                    total += steps[-1].double() * chosen.shape[1]
                    bar.update(chosen.shape[1])
            states = _state(weights, biases, seeds, val_part, number + 1, device)
            losses = (total / len(labels)).tolist()
            if not all(map(math.isfinite, (*losses, *(probe.loss for probe in states)))):
                for what, part in parts.items():
                    _check_finite(part.reps, f"the {what} representations")
                raise InputError(f"the probes diverged in epoch {number + 1}: lower --lr (now {settings.lr:g})")
            yield Epoch(number + 1, lr, states, losses, torch.stack(steps))


def _step(optimizer: torch.optim.Optimizer, weights: Tensor, biases: Tensor, reps: Tensor, labels: Tensor) -> Tensor:
    """One step of every probe on its own rows, (P, B, D) and (P, B); its losses before the step, (P,)."""
    logits = torch.baddbmm(biases, reps.float(), weights)  # (P, B, C)
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    means = losses.view(labels.shape).mean(dim=1)
    optimizer.zero_grad()
    means.sum().backward()  # a sum: the gradient of one probe does not see the others
    optimizer.step()
    return means.detach()


def _state(
    weights: Tensor, biases: Tensor, seeds: Sequence[int], val_part: Labelled, epoch: int, device: torch.device
) -> list[Probe]:
    """The probes as they are now, with their scores on the validation part."""
    weights, biases = weights.detach(), biases.detach()
    correct = torch.zeros(len(seeds), dtype=torch.int64, device=device)
    loss = torch.zeros(len(seeds), dtype=torch.float64, device=device)
    for logits, rows in _logits(weights, biases, val_part.reps, device):
        labels = val_part.labels[rows].to(device).expand(len(seeds), -1)
        correct += (logits.argmax(dim=2) == labels).sum(dim=1)
        each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss += each.view(labels.shape).double().sum(dim=1)
    n, scores = len(val_part.labels), zip(correct.tolist(), loss.tolist())
    linear = zip(weights.transpose(1, 2).cpu(), biases.squeeze(1).cpu())
    return [
        Probe(weight.contiguous().clone(), bias.clone(), seed, epoch, right / n, nats / n)
        for seed, (weight, bias), (right, nats) in zip(seeds, linear, scores)
    ]


@torch.no_grad()
def _logits(weights: Tensor, biases: Tensor, reps: Tensor, device: torch.device) -> Iterator[tuple[Tensor, slice]]:
    """Logits (P, n, C) of consecutive rows."""
    for start in range(0, len(reps), PREDICT_ROWS):
        rows = slice(start, start + PREDICT_ROWS)
        yield torch.matmul(reps[rows].to(device).float(), weights) + biases, rows


@dataclass
class Best:
    """The best probes so far, one per seed: by accuracy and by loss; the earliest where several are equal."""

    by_accuracy: list[Probe] = field(default_factory=list)
    by_loss: list[Probe] = field(default_factory=list)

    def update(self, probes: Sequence[Probe]) -> None:
        if not self.by_accuracy:
            self.by_accuracy, self.by_loss = list(probes), list(probes)
        for i, probe in enumerate(probes):
            if probe.accuracy > self.by_accuracy[i].accuracy:
                self.by_accuracy[i] = probe
            if probe.loss < self.by_loss[i].loss:
                self.by_loss[i] = probe


def _check_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity in a matrix, possibly memory-mapped; names the row."""
    for start in range(0, len(values), PREDICT_ROWS):
        bad = (~torch.isfinite(values[start : start + PREDICT_ROWS]).flatten(1).all(dim=1)).nonzero()
        if len(bad):
            raise InputError(f"{what} hold NaN or infinity, first in row {start + int(bad[0])}")


def predictions(probes: Sequence[Probe], reps: Tensor, *, device: torch.device) -> Tensor:
    """The class each probe gives to each image: (P, N) int32 on the CPU, in one pass over the representations.

    Raises:
        InputError: the representations' width is not the probes'.
    """
    dim = probes[0].weight.shape[1]
    if reps.shape[1] != dim:
        raise InputError(f"the probes read {dim} columns, the representations have {reps.shape[1]}")
    weights = torch.stack([probe.weight.T for probe in probes]).to(device)
    biases = torch.stack([probe.bias[None] for probe in probes]).to(device)
    preds = torch.empty((len(probes), len(reps)), dtype=torch.int32)
    for logits, rows in _logits(weights, biases, reps, device):
        preds[:, rows] = logits.argmax(dim=2).int().cpu()
    return preds


def save(path: Path | str, probe: Probe, about: Mapping[str, Any]) -> None:
    """Write a checkpoint that loads weights-only: the probe's fields, and `about` it (arch, train_set, node ...)."""
    files.save_torch(path, {**about, **vars(probe)})


def load(path: Path | str) -> tuple[Probe, dict[str, Any]]:
    """A probe and what its checkpoint says about it.

    Raises:
        FileNotFoundError: no such file.
        InputError: damaged, not a probe's checkpoint, or its weights are NaN or infinite.
    """
    saved = schemas.validate(safeload.load(path, what="probe checkpoint"), schemas.ProbeCheckpoint, path)
    weight, bias = saved.weight, saved.bias
    if not weight.numel() or weight.shape[:1] != bias.shape:
        raise InputError(f"{path} is not a probe's checkpoint: it has no weight (C, D) and bias (C,)")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise InputError(f"{path}: the probe's weights are NaN or infinite")
    about = saved.model_dump(exclude_unset=True, exclude={"weight", "bias"})
    return Probe(weight.float(), bias.float(), saved.seed, saved.epoch, saved.accuracy, saved.loss), about
