"""Processes for the tests, forked from one that has imported what is slow and has never computed a gradient.

(torch refuses to compute gradients in a fork of a process that has computed some, as the one that runs the tests may
have, depending on which tests came before.)
"""

import functools
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "cifar10_training", "compare_probes", "download_data", "func", "imagenet_training", "inversion", "pytest", "rep",
    "report", "sklearn.datasets", "subgroup_sim", "torch.utils.tensorboard", "train_probe", "univ.show.plots",
    "univ.utils.folder2lmdb", "univ.utils.imagenet50",
)  # fmt: skip


@functools.cache
def server() -> Any:
    """The `multiprocessing` context whose processes have imported everything."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    return context


def command(main: Callable[..., None], argv: list[str], log: Path, limits: dict[int, int], seconds: int) -> Any:
    """Start a script's `main`, as its `__main__` would, in this folder and with these variables.

    Args:
        main: reads its words from `sys.argv`.
        log: gets what it prints.
        limits: of `resource`, by kind.
        seconds: after which it is ended by SIGALRM.

    Returns:
        The process; its exit code is 70 where an exception escaped.
    """
    here = str(Path.cwd()), dict(os.environ)
    process = server().Process(target=run, args=(main, argv, log, limits, seconds, here))
    process.start()
    return process


def run(
    main: Callable[..., None],
    argv: list[str],
    log: Path,
    limits: dict[int, int],
    seconds: int,
    here: tuple[str, dict[str, str]] | None = None,
) -> None:
    """What the started process, or a fork of this one, does; it does not return."""
    import torch

    from univ import cli

    code = 70
    try:
        os.setpgid(0, 0)
        if here is not None:
            os.chdir(here[0])
            os.environ.clear()
            os.environ.update(here[1])
        sys.argv = argv
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        torch.set_num_threads(1)
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, resource.RLIM_INFINITY))
        signal.alarm(seconds)
        cli.run(main)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
