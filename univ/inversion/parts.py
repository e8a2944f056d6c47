"""Parts: the finished images of a file that is still being made, a few at a time, from which a killed run goes on."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from univ import files
from univ.errors import InputError
from univ.files import safeload, schemas
from univ.inversion.images import to_uint8
from univ.inversion.optimise import Inverted
from univ.results import made


def parts_folder(output: Path) -> Path:
    """Where the parts of an unfinished file lie: beside it."""
    return output.with_suffix(".parts")


def remove_left(output: Path) -> None:
    """Remove what a run killed after it had written `output` left: parts, of which none is newer, and its lock."""
    files.remove_orphans(output)
    folder, written = parts_folder(output), output.stat().st_mtime_ns
    if folder.is_dir() and all(path.stat().st_mtime_ns <= written for path in folder.iterdir()):
        with files.locked(output, wait=True):
            shutil.rmtree(folder, ignore_errors=True)


class Parts:
    """The parts of one file. Several processes may save parts at once; each part is written atomically.

    Args:
        output: the file that is being made.
        settings: all that decides the result; with `uint8`, images are saved as 8-bit integers.
        count: number of images of the finished file.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], count: int) -> None:
        self.output = output
        self.folder = parts_folder(output)
        self.count = count
        self._settings = made.plain(settings)
        self._lock = contextlib.ExitStack()

    def open(self, *, discard: bool = False) -> None:
        """Make the folder, or continue what it holds. For one process; the others only save.

        Args:
            discard: start anew where the folder holds parts made with other settings.

        Raises:
            InputError: another run is at it, or the parts were made with other settings: names them.
        """
        with files.cannot_write(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(files.locked(self.output))
        path = self.folder / "settings.json"
        try:
            if path.exists():
                self._require_same_settings(path)
        except InputError:
            if not discard:
                raise
            logger.info("{}: parts made with other settings are discarded", self.folder)
            shutil.rmtree(self.folder)
        if not path.exists():
            files.write_json(path, self._settings)

    def _require_same_settings(self, path: Path) -> None:
        try:
            settings = schemas.read_json(path, dict[str, Any])
        except InputError as error:
            raise InputError(f"{error}: remove the folder, or give --overwrite") from error
        if differing := made.differences(settings, self._settings):
            raise InputError(
                f"{self.folder} holds part of a run with other settings ({made.listed(differing)}): "
                "repeat those, remove the folder, or give --overwrite"
            )

    def missing(self, batch_size: int) -> list[range]:
        """The positions that no part holds, in runs of at most `batch_size` that do not cross its multiples.

        So a continued run computes the very batches of an uninterrupted one.
        """
        done = torch.zeros(self.count, dtype=torch.bool)
        for span in self._spans():
            done[span] = True
        runs = []
        for cell in torch.arange(self.count).split(batch_size):
            free = cell[~done[cell]]
            gaps = (free.diff() > 1).nonzero().flatten() + 1
            runs += [range(int(run[0]), int(run[-1]) + 1) for run in free.tensor_split(gaps) if len(run)]
        return runs

    def save(self, first: int, part: Inverted) -> None:
        content = {name: value.cpu() for name, value in vars(part).items()}
        if self._settings.get("uint8"):
            content["images"] = to_uint8(content["images"])
        files.save_torch(self.folder / f"{first:08d}-{first + len(part.images):08d}.pt", content)

    def wait(self) -> None:
        """Return when all parts are there.

        Polls: a collective operation would time out where one process has an hour more to do than another, and a
        process that dies takes the others with it (torchrun sees to that).
        """
        while sum(span.stop - span.start for span in self._spans()) < self.count:
            time.sleep(0.2)

    def collect(self) -> Inverted:
        """All parts together; images are uint8 where they were saved so.

        Raises:
            InputError: a part is damaged; it is removed, so that the next run makes it again.
        """
        whole: Inverted | None = None
        for path, span in zip(self._paths(), self._spans()):
            try:
                loaded = safeload.load(path, what="part", mmap=True)
                part = Inverted(**dict(schemas.validate(loaded, schemas.InvertedPart, path)))
                for name, value in vars(part).items():
                    held = value if whole is None else getattr(whole, name)
                    n = span.stop - span.start
                    if len(value) != n or value.shape[1:] != held.shape[1:] or value.dtype != held.dtype:
                        raise InputError(f"{path} does not hold {n} images like those of other parts")
            except InputError as error:
                path.unlink()
                raise InputError(f"{error}; it was removed: run again to make it anew") from error
            if whole is None:  # one copy in memory: 10,000 float32 images of 224 x 224 take 6 GB
                whole = Inverted(*(value.new_empty(self.count, *value.shape[1:]) for value in vars(part).values()))
            for field in fields(part):
                getattr(whole, field.name)[span] = getattr(part, field.name)
        assert whole is not None, "collect is called once all parts are there"
        return whole

    def finish(self, inverted: Inverted, describe: Callable[[str], None]) -> None:
        """Write the finished file and remove the parts; `describe` gets its SHA-256 before it is put in its place."""
        files.save_torch(self.output, inverted.images, before=lambda whole: describe(files.file_hash(whole)))
        shutil.rmtree(self.folder)
        self.close()

    def close(self) -> None:
        """Let other runs have the folder."""
        self._lock.close()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-[0-9]*.pt"))

    def _spans(self) -> list[slice]:
        """The positions that each part holds."""
        return [slice(*map(int, path.stem.split("-"))) for path in self._paths()]
