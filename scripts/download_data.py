"""Fetch the published checkpoints and inverted images into the folders the scripts read.

    python scripts/download_data.py --dry-run
    python scripts/download_data.py --what models --dataset imagenet --eps eps0 eps3 --model-names resnet18 resnet50
    python scripts/download_data.py --what inverted --dataset cifar10

Sources: four Zenodo records, and the l2 ImageNet networks on Hugging Face. Free disk is checked first, an interrupted
file continues where it stopped (also in a later run), each file is compared with its published checksum, then placed
as data/cnns/<dataset>/<eps>/<model>.ckpt (.pt for CIFAR-10) or data/<dataset>/inverted/<model>_<eps>.pt. Archives are
unpacked the same way. What is there already is not fetched again.
"""

import argparse
import functools
import hashlib
import os
import re
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # univ, when it is not installed

import requests
from loguru import logger
from requests.adapters import HTTPAdapter, Retry
from tqdm import tqdm

from univ import cli, files, runs
from univ.data.datasets import STUDY_RADII
from univ.eps import eps_name, eps_value
from univ.errors import InputError, plain
from univ.files import schemas
from univ.models import archs_of, read_hugging_face_name
from univ.models.published import TRAIN_SETS, Place, recognise

ZENODO_RECORDS = ("13936007", "14802537", "13936033", "14802491")
HUGGING_FACE_REPO = "madrylab/robust-imagenet-models"
KINDS = ("models", "inverted")
SOURCES = ("huggingface", "zenodo")
_DATA_SUFFIXES = (".ckpt", ".pt", ".pth", ".npy")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
ATTEMPTS = 10  # per file, each continuing where the one before was cut
TIMEOUT = 30  # seconds without an answer
T = TypeVar("T")


# --- the two services -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remote:
    """A published file."""

    source: str
    name: str
    url: str
    size: int  # bytes
    checksum: str  # "md5:<hex>" or "sha256:<hex>"
    place: Place
    context: str = ""  # what its record is called

    @property
    def is_archive(self) -> bool:
        return self.name.lower().endswith(_ARCHIVE_SUFFIXES)

    def staged(self, root: Path) -> Path:
        """Where it lies, or grows, until it is placed."""
        folder = root / ".downloads" / files.file_name(self.source.replace(" ", "_"), "source")
        return folder / files.relative_path(self.name, f"the name of a file of {self.source}")

    def missing(self, root: Path) -> int:
        """Bytes still to be fetched."""
        staged = self.staged(root)
        part = _part(staged)
        return self.size - (part.stat().st_size if part.exists() else staged.stat().st_size if staged.exists() else 0)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@functools.cache
def _session() -> requests.Session:
    """Connections on which a busy service is asked again."""
    session = requests.Session()
    patient = HTTPAdapter(max_retries=Retry(3, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504)))
    session.mount("https://", patient)
    session.mount("http://", patient)
    return session


def _ask(url: str, model: Callable[..., T], what: str) -> T:
    """A service's answer in JSON.

    Raises:
        InputError: it cannot be had, or is of another kind.
    """
    try:
        answer = _session().get(url, timeout=TIMEOUT)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise InputError(f"cannot read {what} ({url}): {error}") from error
    return schemas.parse_json(answer.content, model, f"{what} ({url})")


def list_zenodo(record: str) -> list[Remote]:
    """The files of a record."""
    endpoint = os.environ.get("ZENODO_ENDPOINT", "https://zenodo.org").rstrip("/")
    listed = _ask(f"{endpoint}/api/records/{record}", schemas.ZenodoRecord, f"the Zenodo record {record}")
    return [
        Remote(
            source=f"zenodo {record}",
            name=entry.name,
            url=entry.url or f"{endpoint}/records/{record}/files/{entry.name}",
            size=entry.size,
            checksum=entry.checksum if ":" in entry.checksum else f"md5:{entry.checksum}",
            place=recognise(entry.name, listed.title),
            context=listed.title,
        )
        for entry in listed.files
    ]


def list_hugging_face() -> list[Remote]:
    """The l2 ImageNet networks on Hugging Face; its networks for linf and files that are no networks are left out."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/api/models/{HUGGING_FACE_REPO}?blobs=true"
    listed = _ask(url, schemas.HubRepository, f"Hugging Face's list of {HUGGING_FACE_REPO}")
    remotes = []
    for file in listed.siblings:
        model, radius = read_hugging_face_name(file.rfilename) or (None, 0)
        if file.lfs is not None and model in archs_of("imagenet"):
            remotes.append(
                Remote(
                    source="huggingface",
                    name=file.rfilename,
                    url=f"{endpoint}/{HUGGING_FACE_REPO}/resolve/{listed.sha}/{file.rfilename}",
                    size=file.lfs.size,
                    checksum=f"sha256:{file.lfs.sha256}",
                    place=Place("models", "imagenet", eps_name(radius), model),
                )
            )
    return remotes


def transfer(remote: Remote, path: Path) -> None:
    """Fetch a file to `path`, by way of `<path>.part`, which is continued where a cut or a killed run left it.

    Raises:
        requests.RequestException: the service refused it, or was cut ATTEMPTS times.
        InputError: the disk is full, or the file cannot be written.
    """
    part = _part(path)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append_rest(remote, part)
            break
        except requests.RequestException as error:
            if attempt == ATTEMPTS or isinstance(error, requests.HTTPError):  # asked for again by the session
                raise
            logger.warning("{}: {} (continuing)", remote.name, str(error).partition("\n")[0])
            time.sleep(1)
    part.replace(path)


def _append_rest(remote: Remote, part: Path) -> None:
    """What a part lacks; a server that ignores from where sends all of it again."""
    with files.cannot_write(part):
        file = part.open("ab", buffering=0)
    with file:
        start = file.tell()
        if start == remote.size:
            return
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        if not 0 < start < remote.size:  # nothing yet, or left by something else
            del headers["Range"]
        with _session().get(remote.url, headers=headers, timeout=TIMEOUT, stream=True) as response:
            response.raise_for_status()
            start = start if response.status_code == requests.codes.partial_content else 0
            file.truncate(start)
            quiet = not sys.stderr.isatty()
            sizes = {"initial": start, "total": remote.size, "unit": "B", "unit_scale": True}
            with tqdm(desc=remote.name, **sizes, leave=False, disable=quiet) as bar:
                for chunk in response.iter_content(1 << 14):  # of a chunk that is cut nothing is kept
                    with files.cannot_write(part):
                        files.append(file, chunk)
                    bar.update(len(chunk))


def _digest(path: Path, checksum: str) -> str:
    """The checksum of a file by the method of another, in the same form."""
    method = checksum.partition(":")[0]
    with path.open("rb") as file:
        return f"{method}:{hashlib.file_digest(file, method).hexdigest()}"


# --- planning and fetching ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What the user asked for."""

    what: Sequence[str]
    datasets: Sequence[str]
    eps: Sequence[str]
    models: Sequence[str] | None

    def admits(self, place: Place) -> bool:
        """Whether nothing that is known about a file contradicts the choice."""
        wanted = ((place.what, self.what), (place.dataset, self.datasets), (place.eps, self.eps))
        if any(value is not None and value not in values for value, values in wanted):
            return False
        return self.models is None or place.model is None or place.model in self.models


def choose(remotes: Sequence[Remote], choice: Choice) -> tuple[list[Remote], list[Remote]]:
    """Files to fetch, one per place, and files that were not chosen because their names do not tell their place."""
    chosen: dict[Any, Remote] = {}
    unclear = []
    for remote in remotes:
        suffix = PurePosixPath(remote.name).suffix.lower()
        if not choice.admits(remote.place) or not (remote.is_archive or suffix in _DATA_SUFFIXES):
            continue
        if remote.is_archive:
            chosen[remote.source, remote.name] = remote
        elif remote.place.is_complete():
            chosen.setdefault(remote.place, remote)  # published twice: the first source is taken
        else:
            unclear.append(remote)
    return list(chosen.values()), unclear


def is_placed(remote: Remote, root: Path, choice: Choice, *, overwrite: bool) -> bool:
    """Whether nothing is left to do for a file."""
    if remote.is_archive:
        record = _contents_record(remote, root)
        if not record.exists():
            return False
        try:
            known = schemas.read_json(record, schemas.ArchiveContents)
        except InputError as error:
            logger.warning("fetching {} again: {}", remote.name, error)
            return False
        wanted = [(Place(*place), suffix) for *place, suffix in known.members if choice.admits(Place(*place))]
        return known.checksum == remote.checksum and all(place.path(root, suffix).exists() for place, suffix in wanted)
    target = remote.place.path(root, PurePosixPath(remote.name).suffix)
    if not target.exists():
        return False
    if target.stat().st_size == remote.size and _digest(target, remote.checksum) == remote.checksum:
        return True
    if not overwrite:
        logger.warning("{} differs from the published file and is kept (--overwrite replaces it)", target)
    return not overwrite


def _contents_record(remote: Remote, root: Path) -> Path:
    """Where it is noted what an archive held, so that it need not be kept or fetched again to know."""
    staged = remote.staged(root)
    return staged.with_name(f"{staged.name}.json")


def fetch(remote: Remote, root: Path, choice: Choice, *, overwrite: bool) -> list[Path]:
    """Fetch, verify and place one file; the paths that it became.

    Raises:
        RuntimeError, requests.RequestException: its checksum is another one, or the service gave it up.
        InputError: a file cannot be written.
    """
    staged = remote.staged(root)
    with files.cannot_write(staged):
        staged.parent.mkdir(parents=True, exist_ok=True)
    if not staged.exists() or staged.stat().st_size != remote.size:
        transfer(remote, staged)
    if _digest(staged, remote.checksum) != remote.checksum:
        staged.unlink()
        raise RuntimeError("its checksum is not the published one, it was removed")
    if not remote.is_archive:
        target = remote.place.path(root, staged.suffix)
        files.move(staged, target)
        return [target]
    placed, held = unpack(staged, remote.context, root, choice, overwrite=overwrite)
    if held:
        members = [[place.what, place.dataset, place.eps, place.model, suffix] for place, suffix in held]
        files.write_json(_contents_record(remote, root), {"checksum": remote.checksum, "members": members})
        staged.unlink()
    else:
        logger.warning("{} holds nothing whose name tells its place: it stays at {}", remote.name, staged)
    return placed


def unpack(
    archive: Path, context: str, root: Path, choice: Choice, *, overwrite: bool
) -> tuple[list[Path], list[tuple[Place, str]]]:
    """Place the members of an archive that the choice admits. Only their contents are used: no member names a path.

    Returns:
        The paths placed or already there, and the place and suffix of every member that has one, chosen or not.
    """
    placed, held = [], []
    stem = re.sub("|".join(map(re.escape, _ARCHIVE_SUFFIXES)) + "$", "", archive.name.lower())
    for name, size, stream in _members(archive):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in _DATA_SUFFIXES:
            continue
        place = recognise(f"{stem}/{name}", context)
        if not place.is_complete():
            logger.warning("{}: the name of {} does not tell its place, not unpacked", archive.name, name)
            continue
        held.append((place, suffix))
        if not choice.admits(place):
            continue
        target = place.path(root, suffix)
        if overwrite or not target.exists():
            with files.atomic_path(target) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        elif target.stat().st_size != size:
            logger.warning("{} differs from the published file and is kept (--overwrite replaces it)", target)
        placed.append(target)
    return placed, held


def _members(archive: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    with opened.open(info) as stream:
                        yield info.filename, info.file_size, stream
        return
    with tarfile.open(archive) as opened:
        for info in opened:
            if info.isfile():
                yield info.name, info.size, opened.extractfile(info)


def check_disk(remotes: Sequence[Remote], root: Path) -> tuple[int, int]:
    """Bytes needed and bytes free where the data go.

    Raises:
        InputError: not enough.
    """
    needed = sum(remote.missing(root) + (remote.size if remote.is_archive else 0) for remote in remotes)
    existing = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{_size(needed)} are needed in {root} (archives: twice their size), {_size(free)} are free: choose less "
            "with --what, --dataset, --eps, --model-names, or another folder with --root"
        )
    return needed, free


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


# --- the script -----------------------------------------------------------------------------------------------------


def record(text: str) -> str:
    """The number of a Zenodo record, as typed."""
    cli.positive_int(text)
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--what", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of files")
    parser.add_argument(
        "-d", "--dataset", nargs="+", choices=TRAIN_SETS, default=list(TRAIN_SETS), help="training set of the models"
    )
    parser.add_argument(
        "-o", "--eps", nargs="+", default=list(map(eps_name, STUDY_RADII)), metavar="EPS", help="L2 radii of the models"
    )
    parser.add_argument("--model-names", nargs="+", metavar="MODEL", help="only these architectures")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES), help="where from")
    parser.add_argument(
        "--records", nargs="+", type=record, default=list(ZENODO_RECORDS), metavar="ID", help="Zenodo records"
    )
    parser.add_argument("--root", type=cli.output_dir, default=Path("data"), help="where the data go")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, fetch nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace files that differ from the published ones")
    args = parser.parse_args(argv)
    for name in args.eps:
        try:
            eps_value(name)
        except InputError as error:
            parser.error(f"--eps: {error}")
    known = {arch for dataset in args.dataset for arch in archs_of(dataset)}
    for name in args.model_names or ():
        if name not in known:
            parser.error(f"--model-names: unknown {name!r}, choose from {', '.join(sorted(known))}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs.start()
    choice = Choice(args.what, args.dataset, args.eps, args.model_names)
    remotes: list[Remote] = []
    if "huggingface" in args.source and "models" in args.what and "imagenet" in args.dataset:
        remotes += list_hugging_face()
    if "zenodo" in args.source:
        remotes += [remote for record in args.records for remote in list_zenodo(record)]
    if args.dry_run:
        list_choice(remotes, choice, args)
        return
    with files.locked(args.root / ".downloads", wait=True):  # the next one finds what is there
        todo = list_choice(remotes, choice, args)
        failed = [remote for remote in todo if not fetch_or_say(remote, choice, args)]
    if failed:
        names = ", ".join(remote.name for remote in failed)
        logger.error("{} of {} files failed: {}; run again to continue", len(failed), len(todo), names)
        sys.exit(1)


def list_choice(remotes: Sequence[Remote], choice: Choice, args: argparse.Namespace) -> list[Remote]:
    """Print what was chosen; the files still to be fetched, for which there is room.

    Raises:
        InputError: nothing fits the choice, or the disk is too small.
    """
    chosen, unclear = choose(remotes, choice)
    for remote in unclear:
        logger.warning("{}: the name of {} does not tell its place, not fetched", remote.source, remote.name)
    if not chosen:
        raise InputError("nothing is published that fits --what, --dataset, --eps and --model-names")
    todo = [remote for remote in chosen if not is_placed(remote, args.root, choice, overwrite=args.overwrite)]
    for remote in chosen:
        where = "unpacked by name" if remote.is_archive else remote.place.path(args.root, Path(remote.name).suffix)
        there = "" if remote in todo else "  (there)"
        print(f"{_size(remote.size):>11}  {remote.source:<16}  {plain(remote.name)} -> {where}{there}")
    print(
        f"{_size(sum(remote.size for remote in chosen)):>11}  in {len(chosen)} files, {len(chosen) - len(todo)} there"
    )
    needed, free = check_disk(todo, args.root)
    print(f"{_size(needed):>11}  needed, {_size(free)} free in {args.root}")
    return todo


def fetch_or_say(remote: Remote, choice: Choice, args: argparse.Namespace) -> bool:
    """Fetch and place one file; False, with the reason in the log, if that fails: the others go on.

    Raises:
        InputError: a file cannot be written, so that the others could not be either.
    """
    started = time.perf_counter()
    try:
        placed = fetch(remote, args.root, choice, overwrite=args.overwrite)
    except InputError:
        raise
    except Exception as error:  # whatever a network or an archive can do
        logger.error("{}: {}", remote.name, str(error).partition("\n")[0])
        return False
    seconds = time.perf_counter() - started
    logger.info("{} ({} in {:.0f} s) -> {}", remote.name, _size(remote.size), seconds, ", ".join(map(str, placed)))
    return True


if __name__ == "__main__":
    cli.run(main)
