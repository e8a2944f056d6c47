"""Small disks for the tests: a tmpfs that is made larger and smaller, and commands run in processes of their own."""

import contextlib
import os
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import forks
import pytest

SECONDS = 120  # for one command


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """Mount a tmpfs at `folder`; yields a function that sets its size in bytes. Skips where that is not permitted."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    try:
        subprocess.run(words, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', error)}")

    def resize(size: int) -> None:
        size = max(4096, size)  # 0 means no limit
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True, capture_output=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), and what it said on standard error."""

    code: int
    said: str

    def assert_refused(self) -> None:
        """One line for the user, and no traceback of any thread."""
        assert self.code in (1, 2), f"ended with {self.code}: {self.said}"
        for word in ("Traceback", "Exception in thread", "Exception ignored", "Warning"):
            assert word not in self.said, self.said
        last = self.said.splitlines()[-1]
        assert "error" in last or "failed" in last, self.said
        assert any(reason in self.said for reason in ("No space left", "full", "File too large", "free")), self.said


def run(
    main: Callable[..., None], words: list[object], log: Path, *, file_size: int | None = None, patched: bool = False
) -> Ended:
    """Run a command as its script would, in a process of its own.

    Args:
        file_size: the most bytes a file may have.
        patched: in a fork of this process, which has what a test changed in it, and cannot compute gradients.
    """
    limits = {} if file_size is None else {resource.RLIMIT_FSIZE: file_size}
    job = main, [f"{main.__module__}.py", *map(str, words)], log, limits, SECONDS
    if not patched:
        process = forks.command(*job)
        process.join()
        return Ended(process.exitcode, log.read_text())
    process = os.fork()
    if process == 0:
        forks.run(*job)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), log.read_text())


def held(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_device(path: Path) -> None:
    """Something at `path` that is no regular file: a null device of our own, or a pipe where that is not permitted."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        os.mkfifo(path)
