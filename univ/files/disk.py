"""Files on the disk: written whole or not at all, by one writer at a time, under names that stay in their folder.

Every module writes through here, so that links, devices, full disks, killed runs and neighbours are dealt with once.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

import torch
from loguru import logger

from univ.errors import InputError

LONGEST_NAME = 200  # bytes: file systems allow 255, and temporary names add to it
LARGE = 10**10  # bytes, worth a line in the log before they are read
_open_locks: set[int] = set()


@contextlib.contextmanager
def cannot_write(path: Path | str) -> Iterator[None]:
    """Turn what the system says against writing `path` (disk full, no permission ...) into one line.

    Raises:
        InputError: names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


# --- names and places -----------------------------------------------------------------------------------------------


def file_name(text: str, what: str) -> str:
    """`text`, which may come from a file or the command line, if it can be one file's or folder's name.

    Args:
        what: how messages call it, such as "--exp" or "model in args.json".

    Raises:
        InputError: it is empty, too long, `.` or `..`, or holds a separator (so absolute paths too), a control
            character or what is no Unicode.
    """
    encoded = text.encode(errors="replace")
    if text in ("", ".", "..") or not set(text).isdisjoint("/\\") or not text.isprintable():
        raise InputError(f"{what} {text!r} cannot be a file name: no separators, '..' or control characters")
    if len(encoded) > LONGEST_NAME:
        raise InputError(f"{what} {text[:40]!r}... is too long for a file name ({len(encoded)} bytes)")
    return text


def relative_path(text: str, what: str) -> Path:
    """`text`, such as a run's name, as a path that stays below the folder it is joined to: file names between `/`.

    Raises:
        InputError: a part of it is no file name; see `file_name`.
    """
    return Path(*(file_name(part, f"{what} {text[:80]!r}: part") for part in text.split("/")))


def destination(path: Path | str) -> Path:
    """Where writing to `path` goes: through symbolic links, to a regular file that is there or is to be.

    Raises:
        InputError: something else is there (a folder, a device, a pipe, a link to itself).
    """
    path = Path(path)
    with cannot_write(path):
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        try:
            mode = target.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return target
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot write {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")
    return target


# --- whole files ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    The data are on the disk before the rename, so a crash leaves the old file or the new one, never a part. What a
    killed run left of such a temporary file is removed.

    Raises:
        InputError: the disk is full, the folder cannot be written, or `path` is no regular file.
    """
    target = destination(path)

    def create() -> tuple[int, Path]:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        return handle, Path(name)

    with cannot_write(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(target)
        handle, temporary = _open_locked(create, _lock)  # so that it is not taken for what a killed run left
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600; results are shared like any other file
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            _close(handle)


def copy(source: Path, path: Path | str) -> None:
    """Copy a file's bytes to `path` atomically."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def move(source: Path, path: Path | str) -> None:
    """Move a file to `path` atomically, through links, also to another disk."""
    target = destination(path)
    with cannot_write(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy(source, target)
            source.unlink()


def remove_orphans(target: Path) -> None:
    """Remove the temporary files and the lock that killed runs left beside `target`, for who does not write it."""
    name = glob.escape(target.name)
    for left in (*target.parent.glob(f".{name}.*.tmp"), *target.parent.glob(f".{name}.lock")):
        with contextlib.suppress(OSError), left.open("rb") as file:  # another run may write it, or be removing it too
            if _lock(file, wait=False):
                left.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; paths and devices become strings."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def append_text(path: Path | str, text: str, *, header: str = "") -> None:
    """Append whole lines to a text file that several processes may append to; it is made where it is missing.

    Where that fails (disk full) the file is as it was. A torn last line, which a crash may leave, is ended first.

    Args:
        header: the first line, without its end; a file that begins with another one is refused.

    Raises:
        InputError: another header, or the file cannot be written.
    """
    target = destination(path)
    with cannot_write(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a+b", buffering=0) as file:  # a buffer would be written on closing, after a failure too
            _lock(file)
            file.seek(0)
            first = _check_header(path, file.readline(), header)
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            append(file, ("\n" * torn + (f"{header}\n" if header and not first else "") + text).encode())
            os.fsync(file.fileno())


def append(file: FileIO, data: bytes) -> None:
    """Write to a file that is open for appending without a buffer; where that fails, the file is as it was.

    Raises:
        OSError: the disk is full ...
    """
    size = file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        os.ftruncate(file.fileno(), size)
        raise


def check_append(path: Path | str, *, header: str = "") -> None:
    """Find out, without writing, whether `append_text` could append: before hours of work that would be lost.

    Raises:
        InputError: another header, or the file cannot be written; that the disk will be full is not foreseen.
    """
    target = destination(path)
    with cannot_write(path):
        if target.exists():
            with target.open("r+b") as file:
                _check_header(path, file.readline(), header)
            return
        folder = next(folder for folder in target.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone do not tell, root has them all


def _check_header(path: Path | str, line: bytes, header: str) -> str:
    """A file's first line without its end, if it is `header` or empty, or `header` is."""
    first = line.decode("utf-8", errors="replace").rstrip("\r\n")
    if header and first and first != header:
        raise InputError(f"{path} begins with {first[:200]!r}, expected {header}")
    return first


def save_torch(path: Path | str, value: Any, *, before: Callable[[Path], None] | None = None) -> None:
    """`torch.save` to `path` atomically.

    Args:
        before: called with the whole file, under a temporary name, before it is put in its place.

    Raises:
        InputError: the disk is full, or the folder cannot be written (torch reports it as RuntimeError).
    """
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:  # given a path, torch keeps its random name inside the file
                torch.save(value, file)
        except RuntimeError as error:
            raise InputError(f"cannot write {path}: {str(error).splitlines()[0]} (is the disk full?)") from error
        if before is not None:
            before(temporary)


def read_text(path: Path | str) -> str:
    """A text file's content.

    Raises:
        FileNotFoundError: no such file.
        InputError: it is a folder, or no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, expected a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


# --- one writer -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path | str, *, wait: bool = False) -> Iterator[None]:
    """Be the one process that makes `path` (a file or a folder) while the block runs.

    The lock is a file beside `path`, named `.<name>.lock`, that says who holds it; it is gone with the process,
    however that ends.

    Args:
        wait: whether to wait for a process that holds it, saying so.

    Raises:
        InputError: another process holds it and `wait` is off (the line says which), or no lock can be made there.
    """
    target = Path(os.path.realpath(path))
    name = target.with_name(f".{target.name}.lock")

    def lock(handle: int) -> None:
        try:
            if not _lock(handle, wait=False):
                logger.warning("this file system has no locks: write {} from one process only", path)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            if not wait:
                raise InputError(f"{path} is being written by {holder}: let it finish, or stop it") from error
            logger.info("waiting: {} is being written by {}", path, holder)
            _lock(handle)

    with cannot_write(name):
        name.parent.mkdir(parents=True, exist_ok=True)
        handle, _ = _open_locked(lambda: (os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), name), lock)
    try:
        with cannot_write(name):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        if handle in _open_locks:  # else this is a forked child that unwinds, and the lock its parent's
            name.unlink(missing_ok=True)
            _close(handle)


def _open_locked(create: Callable[[], tuple[int, Path]], lock: Callable[[int], Any]) -> tuple[int, Path]:
    """A file of one's own: opened by `create`, locked until `_close`, and not removed between the two."""
    while True:
        handle, path = create()
        _open_locks.add(handle)
        try:
            lock(handle)
            if os.fstat(handle).st_nlink:
                return handle, path
        except BaseException:
            _close(handle)
            raise
        _close(handle)


def _lock(file: int | IO, *, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False on a file system that has no locks.

    Raises:
        BlockingIOError: another process holds it and `wait` is off.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        return False
    return True


def _close(handle: int) -> None:
    _open_locks.discard(handle)
    os.close(handle)


def _close_locks_of_parent() -> None:
    """A forked worker lets go of the locks it inherited: it may outlive a parent that is killed."""
    for handle in _open_locks:
        os.close(handle)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_locks_of_parent)


# --- content --------------------------------------------------------------------------------------------------------


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path | str) -> str:
    """`file_hash`, kept while the file does not change; see `kept_hash`."""
    return kept_hash([path], "bytes", lambda: file_hash(path))


def kept_hash(paths: Iterable[Path | str], what: str, compute: Callable[[], str]) -> str:
    """A hash of the content of some files, computed again only when a path, size, inode or time of change differs.

    Hashes are kept in $XDG_CACHE_HOME/univ/hashes (~/.cache/univ/hashes), which may be removed at any time.

    Args:
        what: is hashed, and all else the hash depends on.
        compute: gives the hash, 64 hexadecimal digits.

    Raises:
        FileNotFoundError: a file is missing.
    """
    files = [Path(os.path.realpath(path)) for path in paths]
    states = [(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for status in map(os.stat, files)]
    known = hashlib.sha256(f"{what}\n".encode())
    for path, state in zip(files, states):
        known.update(os.fsencode(f"{path}\0{' '.join(map(str, state))}\n"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    kept = cache / "univ/hashes" / known.hexdigest()
    with contextlib.suppress(OSError):
        text = kept.read_text()
        if len(text) == 64:
            return text
    if (size := sum(state[0] for state in states)) > LARGE:
        logger.info("reading {:.0f} GB of {} once, to tell later whether they changed", size / 1e9, files[0].parent)
    digits = compute()
    newest = max((max(state[2:]) for state in states), default=0)
    if time.time_ns() - newest > 2e9:  # a file changed within the clock's grain of its hash would look unchanged
        try:
            write_text(kept, digits)
        except InputError as error:
            logger.debug("hashes are not kept: {}", error)
    return digits
