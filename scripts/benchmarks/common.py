"""What the benchmarks share: the line that says where a number comes from, tables, and alternating timings."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn

from univ import runs
from univ.models import HEAD_INPUT, Classifier
from univ.reps.nodes import Reader


def environment_line(device: torch.device) -> str:
    """Hardware, threads and versions in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor() or platform.machine())
    where = f"{processor}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} ({where})"
    versions = runs.versions()
    return f"{where}; Python {versions['python']}, torch {versions['torch']}; commit {runs.commit()[:8]}"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def alternate(
    runs_by_name: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each run, taken in turn (A B A B ...), by default after one warm-up each."""
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in runs_by_name}
    for repeat in range(0 if warm_up else 1, repeats + 1):
        for name, run in runs_by_name.items():
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            if repeat > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


class _WithLatent(nn.Module):
    """A classifier's network with the calling convention of the `robustness` package."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.network = model.model
        self._model = [model]  # in a list, so that it is not registered a second time

    def forward(
        self, x: Tensor, with_latent: bool = False, fake_relu: bool = False, no_relu: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not with_latent:
            return self.network(x)
        with Reader(self._model[0], HEAD_INPUT) as tap:
            return self.network(x), tap.rep


def peer(model: Classifier) -> nn.Module:
    """The same network as `robustness.attacker.AttackerModel`, which attacks, trains and inverts it."""
    from robustness.attacker import AttackerModel

    statistics = SimpleNamespace(mean=model.normalizer.new_mean.flatten(), std=model.normalizer.new_std.flatten())
    return AttackerModel(_WithLatent(model), statistics)


@contextlib.contextmanager
def cuda_only_on_cuda(device: torch.device) -> Iterator[None]:
    """On the CPU, keep `robustness` from moving images to CUDA, which it does whatever the device is."""
    if device.type == "cuda":
        yield
    else:
        with mock.patch.object(Tensor, "cuda", lambda tensor: tensor):
            yield
