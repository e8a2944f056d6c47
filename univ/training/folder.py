"""The folder of a training, -s/--save: one run at a time, where it goes on, room for another, the finished model."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from univ import files
from univ.errors import InputError
from univ.files import schemas
from univ.models import checkpoints, file_stem
from univ.results import made
from univ.runs import Distributed
from univ.training.loop import Start
from univ.training.recipe import Recipe, Saving, differences


@contextlib.contextmanager
def only_run(folder: Path, process: Distributed) -> Iterator[None]:
    """Hold a folder for this run, which may have several processes: the first one locks it for all.

    Raises:
        InputError: in every process, when another run trains there.
    """
    problem = None
    with contextlib.ExitStack() as held:
        if process.is_main:
            try:
                if not folder.exists():
                    held.callback(_remove_if_empty, folder)  # by a run that is refused
                held.enter_context(files.locked(folder / checkpoints.LATEST))
            except InputError as error:
                problem = error
        if problem := process.broadcast(problem):
            raise problem
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


# --- where a run goes on --------------------------------------------------------------------------------------------


def find_start(
    folder: Path, finished: Path, arch: str, recipe: Recipe, *, resume: bool, checkpoint: Path | None, overwrite: bool
) -> Start | None:
    """The checkpoint that --resume, -v (`checkpoint`) or a restart by torchrun asks for; None to begin.

    Raises:
        InputError: the folder holds what this run would overwrite, or the checkpoint does not fit what is asked for.
    """
    # torchrun starts all processes again when one has failed, with the command line of the beginning
    if resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        try:
            path, content = checkpoints.newest_readable(folder)
        except FileNotFoundError:
            return None
        differing = differences(content, recipe)
        if content.get("arch") != arch:
            differing.insert(0, f"architecture was {content.get('arch')}, now {arch}")
        refuse_other_settings(path, differing)
        return path, content
    if not (overwrite or continues_in_place(folder, checkpoint)):
        _refuse_to_overwrite(folder, finished, arch)
    if checkpoint is None:
        return None
    content = checkpoints.load_checkpoint(checkpoint)
    if (epochs := checkpoints.epochs_of(content)) >= recipe.epochs:
        raise InputError(f"-v {checkpoint} has {epochs} epochs behind it: ask for more than -e {recipe.epochs}")
    return checkpoint, content


def check_start(start_from: Start | None, process: Distributed) -> None:
    """See that all processes start from the same epoch; every process has to call it.

    Raises:
        InputError: some found another checkpoint, or none, as on nodes that do not share --save.
    """
    epochs = process.gather(None if start_from is None else checkpoints.epochs_of(start_from[1]))
    if len(set(epochs)) > 1:
        each = ", ".join("none" if epoch is None else f"epoch {epoch}" for epoch in epochs)
        raise InputError(f"the processes found different checkpoints, by rank: {each}; they must share -s/--save")


def refuse_other_settings(path: Path, differing: list[str]) -> None:
    """Refuse to resume from a checkpoint that was made in another way, unless nothing differs."""
    if differing:
        raise InputError(f"--resume: {path} is of a run with other settings: {made.listed(differing)}")


def continues_in_place(folder: Path, checkpoint: Path | None) -> bool:
    """Whether a checkpoint is one of those in a run's folder."""
    return checkpoint is not None and checkpoint.resolve().parent == folder.resolve()


def _refuse_to_overwrite(folder: Path, finished: Path, arch: str) -> None:
    if finished.exists():
        raise InputError(f"{finished} exists: train it again with --overwrite, or choose another --save")
    try:
        path, content = checkpoints.newest_readable(folder)
    except FileNotFoundError:
        return
    if content.get("arch") == arch or _unfinished(content):
        epochs = f"{content.get('epoch', '?')} epochs of {content.get('arch', 'a model')}"
        raise InputError(f"{path} holds {epochs}: go on with --resume, begin anew with --overwrite, or change --save")


def _unfinished(checkpoint: Mapping[str, Any]) -> bool:
    resume = checkpoint.get("resume")
    return resume is None or checkpoint["epoch"] < resume["recipe"]["epochs"]


# --- what lies there ------------------------------------------------------------------------------------------------


def complete_first_save(saving: Saving, path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write what a run was still to write that was killed within its first save: copies of the same checkpoint."""
    if (saving.folder / checkpoints.LATEST).exists():
        return
    epoch = checkpoints.epochs_of(checkpoint)
    for name in [f"{epoch}_checkpoint.pt"] * saving.keeps(epoch) + [checkpoints.LATEST]:
        if not (saving.folder / name).exists():
            files.copy(path, saving.folder / name)


def publish(folder: Path, finished: Path, process: Distributed) -> None:
    """Copy a complete run's best checkpoint to where the other scripts look for it."""
    if process.is_main:
        files.copy(folder / checkpoints.BEST, finished)
        logger.info("best epoch: {}", finished)


def make_room(folder: Path, *, overwrite: bool) -> None:
    """Move what an earlier run left in a folder to <its architecture>_run there, or remove it (and nothing else).

    Otherwise this run, stopped before its first checkpoint, would be resumed from the other's.

    Raises:
        InputError: its args.json names no architecture, or one that could not be a file's name.
    """
    names = ("args.json", "log.jsonl", "tensorboard", checkpoints.LATEST, checkpoints.BEST)
    left = [path for path in (*map(folder.joinpath, names), *folder.glob("*_checkpoint.pt")) if path.exists()]
    if not left:
        return
    if overwrite or not any("checkpoint" in path.name for path in left):  # killed before its first: nothing to keep
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    earlier = _earlier_arch(folder / "args.json")
    stem = f"{file_stem(earlier)}_run"
    names = itertools.chain([stem], (f"{stem}{number}" for number in itertools.count(2)))
    moved = next(path for path in map(folder.joinpath, names) if not os.path.lexists(path))
    moved.mkdir()
    for path in left:
        path.rename(moved / path.name)
    logger.info("moved checkpoints and logs of the earlier run ({}) to {}", earlier, moved)


def _earlier_arch(record: Path) -> str:
    """The architecture of the run that wrote an args.json; `earlier` where there is none."""
    if not record.exists():
        return "earlier"
    arch = schemas.read_json(record, schemas.RunArguments).model
    try:
        file_stem(arch)
    except InputError as error:
        raise InputError(f"{record}: {error}; remove it") from error
    return arch
