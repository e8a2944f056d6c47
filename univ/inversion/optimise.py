"""Representation inversion: seed images, target images and a model in; images it represents like the targets out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from univ.attacks import L2MomentumStep, at_least_float32
from univ.errors import InputError
from univ.models import HEAD_INPUT, Classifier
from univ.models.folding import fold_batchnorm
from univ.models.precision import arithmetic
from univ.reps.nodes import Reader

MOMENTUM = 0.9
CHECK_EVERY = 100  # iterations between two looks at who has converged (`tol`)
FP16_LOSS_SCALE = 1024.0  # pixel gradients of a relative distance fall below fp16's smallest normal number, 6e-5
WARM_UP = 3  # iterations before a CUDA graph is captured: cuDNN chooses its algorithms, the allocator its blocks


@dataclass(frozen=True)
class Inversion:
    """How an inversion runs: f(x) = |r(x) - r(t)| / |r(t)| is minimised from x = s, r the input of the last layer.

    Attributes:
        iterations: steps per image.
        step_size: L2 length of a step once the momentum has built up, pixel units of [0, 1].
        tol: an image stops when its best distance improves by less than this over 100 iterations; None never stops.

    Raises:
        InputError: a value out of range.

    Source: Jones et al., UAI 2022. Their projection to an L2 ball of radius 1000 around the seed is left out: no two
    images of less than 577 pixels a side are that far apart.
    """

    iterations: int = 1000
    step_size: float = 1 / 8
    tol: float | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.step_size > 0:
            raise InputError(f"an inversion needs --iterations >= 1 and --step-size > 0, got {self}")
        if self.tol is not None and not self.tol > 0:
            raise InputError(f"--tol must be above 0, got {self.tol}")


@dataclass(frozen=True)
class Inverted:
    """What came out for n images, in float32, or float64 if model and images are."""

    images: Tensor  # (n, 3, H, W) in [0, 1]: per image the iterate nearest to its target, the last included
    start_distance: Tensor  # (n,) relative distance of the first iterate
    final_distance: Tensor  # (n,) and of `images`
    best_iteration: Tensor  # (n,) int64, steps after which `images` was reached; 0 is the first iterate itself


@dataclass
class _State:
    """The images of one batch on their way. All but `iteration` have one row per image."""

    x: Tensor  # (n, 3, H, W), at least float32, whatever the network's precision
    mean: Tensor  # of the gradients' directions: the momentum
    target: Tensor  # (n, D) representations of the target images
    scale: Tensor  # (n,) what a distance is divided by
    best_x: Tensor
    best_distance: Tensor
    best_iteration: Tensor
    iteration: Tensor  # () int64, on the device, so that a CUDA graph can count

    @classmethod
    def start(cls, x: Tensor, target: Tensor, scale: Tensor) -> _State:
        x = at_least_float32(x).clone(memory_format=torch.channels_last)
        distance = torch.full((len(x),), float("inf"), device=x.device, dtype=target.dtype)
        iteration = torch.zeros((), dtype=torch.int64, device=x.device)
        best = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(x, torch.zeros_like(x), target, scale, x.clone(), distance, best, iteration)

    def rows(self, keep: Tensor) -> _State:
        """A copy of some of the images; `keep` is (n,) bool."""
        return _State(*(value[keep] if value.ndim else value.clone() for value in self._tensors()))

    def copy_(self, other: _State) -> None:
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(theirs)

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def _capture(advance: Callable[[_State], None], state: _State) -> tuple[_State, Callable[[], None]]:
    """A copy of a state, and an iteration on it as a CUDA graph: hundreds of kernels are launched by one call."""
    state = state.rows(torch.ones(len(state.x), dtype=torch.bool, device=state.x.device))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(state.x.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                advance(state)
        torch.cuda.current_stream().wait_stream(stream)
        # "thread_local": the thread that pins the next batch allocates meanwhile, as it may
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            advance(state)
    return state, graph.replay


class Inverter:
    """A model made ready for inversion: frozen, batch norm folded into the convolutions, channels last.

    The loop is not `attacks.pgd`: it reports the best iteration, drops images that have converged and works in place,
    so that a CUDA graph can hold an iteration. The step rule is the same. One forward and one backward pass per
    iteration, one forward pass more for the last iterate. Images do not depend on the others of their batch.

    Made inside `torch.autocast`, it runs the network in that dtype, and must be used there too. The images and their
    momentum are float32 all the same, and the distances it gives are those of the model in float32, without TF32.

    Args:
        model: in evaluation mode. It is not changed, but kept: for the distances, where the copy is less precise.
        node, pool: where the representation is read, see `Reader`; by default the input of the last layer.
        cuda_graph: capture the iteration, on CUDA devices; False for networks that cannot be captured.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(
        self,
        model: Classifier,
        inversion: Inversion,
        *,
        node: str = HEAD_INPUT,
        pool: str | None = None,
        cuda_graph: bool = True,
    ) -> None:
        if model.training:
            raise ValueError(f"{model.arch} is in training mode: representations are inverted in evaluation mode")
        self.inversion, self._model, self._node, self._pool = inversion, model, node, pool
        self._network = (
            fold_batchnorm(model, read=node).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        )
        device = next(self._network.parameters()).device
        self._autocast = torch.is_autocast_enabled(device.type)
        self._loss_scale = 1.0
        if self._autocast:
            dtype = torch.get_autocast_dtype(device.type)
            for module in self._network.modules():  # what autocast would cast anew in every forward pass
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(dtype)
            self._loss_scale = FP16_LOSS_SCALE if dtype == torch.float16 else 1.0
        self._cuda_graph = cuda_graph and device.type == "cuda"
        self._captured: tuple[_State, Callable[[], None]] | None = None

    @torch.no_grad()
    def __call__(
        self, start_images: Tensor, target_images: Tensor, on_step: Callable[[int], object] | None = None
    ) -> Inverted:
        """Invert one batch.

        Args:
            start_images, target_images: (n, 3, H, W) in [0, 1], on the model's device.
            on_step: called after each iteration with the number of images that took part (progress bars).

        Raises:
            InputError: a distance is NaN or infinite.
        """
        n, iterations, tol = len(start_images), self.inversion.iterations, self.inversion.tol
        target, scale = scaled(self._represent(self._network, target_images))
        state, advance = self._runner(_State.start(start_images, target, scale))
        images = torch.empty_like(state.x)
        start, final, best = torch.empty_like(scale), torch.empty_like(scale), torch.empty_like(state.best_iteration)
        running = torch.arange(n, device=scale.device)  # which image each row of the state is

        def finish(finished: _State, which: Tensor) -> None:
            self._finish(finished)
            images[which], final[which] = finished.best_x, finished.best_distance
            best[which] = finished.best_iteration

        for number in range(1, iterations + 1):
            advance()
            if on_step is not None:
                on_step(len(running))
            if number == 1:
                start = before = state.best_distance.clone()
            if tol is None or number % CHECK_EVERY or number == iterations:
                continue
            moving = before - state.best_distance >= tol
            if not moving.all():
                finish(state.rows(~moving), running[~moving])
                running = running[moving]
                if not len(running):
                    break
                state, advance = self._runner(state.rows(moving))
            before = state.best_distance.clone()
        if len(running):
            finish(state, running)
        if self._autocast or (start.is_cuda and torch.backends.cudnn.allow_tf32):
            start, final = (self.distances(chosen, target_images) for chosen in (start_images, images))
        return Inverted(images.contiguous(), start, final, best)

    @torch.no_grad()
    def distances(self, images: Tensor, target_images: Tensor) -> Tensor:
        """Relative distance, (n,), of every image's representation to its target's in float32; 0 is equal."""
        device = images.device
        with arithmetic("fp32", device), torch.autocast(device.type, enabled=False):
            target, scale = scaled(self._represent(self._model, target_images))
            return _distance(self._represent(self._model, images), target, scale)

    def _runner(self, state: _State) -> tuple[_State, Callable[[], None]]:
        """The state to look at, and a function that advances it by one iteration."""
        if not self._cuda_graph:
            return state, lambda: self._advance(state)
        if self._captured is None or self._captured[0].x.shape != state.x.shape:
            self._captured = None  # gives its memory back before the next capture
            try:
                self._captured = _capture(self._advance, state)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise InputError(
                    f"this network cannot be captured as a CUDA graph ({str(error).splitlines()[0]}): "
                    "run with --no-cuda-graph"
                ) from error
        self._captured[0].copy_(state)
        return self._captured

    def _advance(self, state: _State) -> None:
        with torch.enable_grad():
            x = state.x.detach().requires_grad_(True)
            distance = _distance(self._represent(self._network, x), state.target, state.scale)
            # the rule ascends; the sum's gradient holds every image's own gradient, whatever the batch size
            (gradient,) = torch.autograd.grad(distance.sum() * -self._loss_scale, x)
        self._record(state, distance.detach())
        rule = L2MomentumStep(x, torch.inf, self.inversion.step_size, MOMENTUM, mean=state.mean)
        state.x.copy_(rule.step(state.x, gradient).clamp_(0, 1))  # nothing but [0, 1] limits it, see `Inversion`
        state.iteration += 1

    def _record(self, state: _State, distance: Tensor) -> None:
        """Keep the iterates that are better than all before, without waiting for the device."""
        better = distance < state.best_distance
        torch.where(better[:, None, None, None], state.x, state.best_x, out=state.best_x)
        torch.where(better, distance, state.best_distance, out=state.best_distance)
        torch.where(better, state.iteration, state.best_iteration, out=state.best_iteration)

    def _finish(self, state: _State) -> None:
        distance = _distance(self._represent(self._network, state.x), state.target, state.scale)
        if not torch.isfinite(distance).all():
            raise InputError(
                f"{self._network.arch}: distances are NaN or infinite (a broken checkpoint, or --precision too low)"
            )
        self._record(state, distance)

    def _represent(self, model: Classifier, images: Tensor) -> Tensor:
        return represent(model, images, self._node, self._pool)


def represent(model: Classifier, images: Tensor, node: str = HEAD_INPUT, pool: str | None = None) -> Tensor:
    """What is inverted, (n, D), of images (n, 3, H, W): by default the input of the last layer."""
    with Reader(model, node, pool) as reader:
        model(images.contiguous(memory_format=torch.channels_last))
        return at_least_float32(reader.rep.flatten(1))


def scaled(target: Tensor) -> tuple[Tensor, Tensor]:
    """Targets (n, D), and what their distances are divided by, (n,)."""
    norm = torch.linalg.vector_norm(target, dim=1)
    # Nothing is relative to a representation of 0; the distance itself has the same minimum.
    return target.clone(), torch.where(norm > 0, norm, 1.0)


def _distance(rep: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    # At a distance of 0 vector_norm's gradient is 0, and a zero gradient makes a zero step.
    return torch.linalg.vector_norm(rep - target, dim=1) / scale
