"""What the benchmarks share: the line that says where a number comes from, tables, and alternating timings."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from univ import runs


def processor_name() -> str:
    """The CPU's model name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment_line(device: torch.device) -> str:
    """Hardware, threads and versions in one line."""
    where = f"{processor_name()}, {torch.get_num_threads()} threads"
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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    runs_by_name: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each run, taken in turn (A B A B ...), by default after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs_by_name}
    for repeat in range(0 if warm_up else 1, repeats + 1):
        for name, run in runs_by_name.items():
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def cuda_only_on_cuda(device: torch.device) -> Iterator[None]:
    """On the CPU, keep `robustness` from moving images to CUDA, which it does whatever the device is."""
    if device.type == "cuda":
        yield
    else:
        with mock.patch.object(Tensor, "cuda", lambda tensor: tensor):
            yield
