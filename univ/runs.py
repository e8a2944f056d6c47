"""What every run needs besides its work: log lines and bars on one terminal, seeds, torchrun, provenance."""

import contextlib
import functools
import importlib.metadata
import io
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from univ import files
from univ.errors import plain

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "gudhi", "robustness")


def start(*, quiet: bool = False, log_file: Path | None = None) -> None:
    """Send log lines through tqdm, so that they do not tear the progress bars; only the first process speaks."""
    logger.remove()
    logger.configure(patcher=lambda record: record.update(message=plain(record["message"], keep="\n\t")))
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        logger.add(log_file, format="{time:YYYY-MM-DD HH:mm:ss} {level} {message}")
    logger.add(
        lambda text: tqdm.write(text, file=sys.stderr, end=""),
        format="{time:HH:mm:ss} {message}" if not quiet else "{message}",
        level="WARNING" if quiet else "INFO",
        colorize=sys.stderr.isatty(),
    )


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, which libraries we call may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def die_with_parent(_worker: int = 0) -> None:
    """End this worker process when the one that started it is gone, however it went (kill -9).

    Call it in the worker; it fits DataLoader's `worker_init_fn`.

    A thread waits for the end of a pipe that multiprocessing leaves open in the parent, and in workers started later,
    which end first. (The system's own signal for it, PR_SET_PDEATHSIG, comes when the thread that forked ends, though
    the process lives on, and does not come to workers that a fork server started.)
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)  # nobody is left to be told

    threading.Thread(target=watch, name="parent", daemon=True).start()


@functools.cache
def commit() -> str:
    """The repository's commit, with `+changes` when tracked files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages a number may depend on."""
    known = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known


def provenance() -> dict[str, Any]:
    """Commit and versions, for the JSON beside every result."""
    return {"commit": commit(), "versions": versions()}


def write_arguments(path: Path, arguments: dict[str, Any]) -> None:
    """Write a run's arguments, commit and versions as JSON."""
    files.write_json(path, {"arguments": arguments, **provenance()})


def scalars(folder: Path, *, purge_step: int | None = None) -> Callable[[str, float, int], None]:
    """Begin a TensorBoard log in `folder`; returns the function that adds a value to it, given tag, value and step.

    Each value is in the file when the function returns: the thread of torch's SummaryWriter meets a full disk with a
    traceback of its own, and after the run has gone on.

    Args:
        purge_step: TensorBoard forgets what earlier logs in the folder hold from this step on.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # half a second, which --help need not wait for
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    path = folder / f"events.out.tfevents.{time.time():017.6f}.{os.uname().nodename}.{os.getpid()}"

    def write(event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with files.cannot_write(path), path.open("ab", buffering=0) as file:
            files.append(file, record.getvalue())

    def add(tag: str, value: float, step: int) -> None:
        write(Event(step=step, summary=scalar(tag, value)))

    with files.cannot_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write(Event(file_version="brain.Event:2"))
    if purge_step is not None:
        write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
    return add


@dataclass(frozen=True)
class Distributed:
    """This process's place among the processes torchrun started; a group of one without torchrun.

    Attributes:
        device: where this process computes: `cuda:<local rank>` when the device asked for is plain `cuda`.
        rank, world_size: as torchrun sets them.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    owns_group: bool = field(default=False, repr=False)

    @classmethod
    def from_environment(cls, device: torch.device) -> "Distributed":
        """Join the group torchrun's environment variables describe (NCCL on CUDA, gloo on the CPU)."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls(device)
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        cuda = device.type == "cuda"
        if cuda and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        if cuda:
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            # told its device, NCCL builds its communicators at once and never guesses one from the rank
            dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
        return cls(device, rank, world_size, owns_group=True)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over processes, in place and returned."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes (any picklable objects), by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's `value` (any picklable object) in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the group this object joined."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()
