"""The commands at a size of a second, each run in a process that is forked after the slow imports, and killed at will.

A command works in a folder of its own that begins as a copy of its inputs. What it leaves is compared as `state`: the
content of every file, without the times in some.
"""

import functools
import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forks

ROOT = Path(__file__).resolve().parents[2]
HERE = ("--device", "cpu", "--quiet")
ARCHS = ("vgg11", "resnet10")
WRITING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.flock")  # audit events, besides "open" to write
GRACE = 60.0  # seconds: beside other work a new process takes long to come to the point where it watches its parent


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: the module that holds its `main`.
        inputs: folders and files of the study that it reads, or adds to.
        workers: whether it starts processes.
        second: what the second of two at once does: `waits`, and finds it done, or `ends`, with one line.
    """

    module: str
    words: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    workers: bool = False
    second: str = "waits"


def _words(text: str, *more: str) -> tuple[str, ...]:
    return (*text.split(), *more)


_MODELS = _words("-d digits -m digits -o eps1 --model-dir cnns --model-names", *ARCHS)
_COMPARE = (*_MODELS, *_words("--cache-dir cache --index-file-dir indices --results results --workers 0"), *HERE)
_TRAIN = (*_words("--dataset digits -m vgg11 -b 32 -e 2 -k 1 -s out"), *HERE)

COMMANDS = {
    "train": Command("cifar10_training", _TRAIN, second="ends"),
    "resume": Command("cifar10_training", (*_TRAIN, "--resume"), second="ends"),
    "invert": Command(
        "inversion",
        (*_words("-d digits -m vgg11 -e eps1 --model-dir cnns/eps1 -i inv -n 8 -u 48 --iterations 2 -b 2"), *HERE),
        ("cnns",),
        second="ends",
    ),
    "rep": Command("rep", (*_COMPARE, *_words("-r cka proc jacc -k 5")), ("cnns",)),
    "func": Command("func", (*_COMPARE, *_words("-f dis jsd")), ("cnns",)),
    "subgroups": Command(
        "subgroup_sim",
        (*_words("--cache-dir cache --dataset digits --eps eps1 --results sub --measures cka proc jacc"), *HERE),
        ("cache",),
    ),
    "probe": Command(
        "train_probe",
        (*_words("-m cnns/eps1/vgg11.pt -d digits -b 32 --epochs 2 -w 0 --run-name p/vgg11_eps1 --runs runs"), *HERE),
        ("cnns",),
    ),
    "compare probes": Command("compare_probes", (*_words("--runs runs --out agreement.csv"), *HERE), ("runs",)),
    "lmdb": Command("univ.utils.folder2lmdb", _words("-f images -s train -p 2 --quiet"), ("images",), True, "ends"),
    "imagenet50": Command("univ.utils.imagenet50", _words("-f hundred -s val --out fifty --quiet"), ("hundred",)),
    "download": Command("download_data", _words("--source zenodo --records 1 --root data")),
    "report": Command("report", _words("--results results --out report.html --quiet"), ("results",)),
    "plots": Command("univ.show.plots", _words("--results results --figs figs --quiet"), ("results",)),
}


# --- processes ------------------------------------------------------------------------------------------------------


class Run:
    """A command that has been started in `folder`.

    Args:
        die_at: the process kills itself before its so-many-th change to a file; None: never.
        environment: more variables.
    """

    def __init__(
        self, command: Command, folder: Path, *, die_at: int | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
        words = (command, folder, self.log, die_at, environment or {})
        self.process = forks.server().Process(target=_run, args=words)
        self.process.start()

    def end(self, timeout: float = 120) -> int:
        """Wait for its end; the exit code."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.output}"
        return self.process.exitcode

    def kill(self) -> None:
        """`kill -9`, to this process alone."""
        self.process.kill()
        self.process.join()

    @property
    def output(self) -> str:
        """What it printed."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def changes(self) -> int:
        """How many changes to files it made."""
        return int(self.log.with_suffix(".changes").read_text())

    def family(self) -> list[int]:
        """The processes of its session that are there, itself included."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def left(self) -> list[int]:
        """The processes that outlive it for more than GRACE seconds."""
        deadline = time.monotonic() + GRACE
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


def _run(command: Command, folder: Path, log: Path, die_at: int | None, environment: dict[str, str]) -> None:
    """What a started process does."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = [command.module]
    _make_digits_few()
    changes = _Changes(str(folder), die_at)
    module = importlib.import_module(command.module)
    from univ import cli

    sys.addaudithook(changes)
    try:
        cli.run(functools.partial(module.main, list(command.words)))
    finally:
        changes.die_at = None
        log.with_suffix(".changes").write_text(str(changes.count))


class _Changes:
    """An audit hook that counts changes to files below a folder, and kills the process before one of them."""

    def __init__(self, folder: str, die_at: int | None) -> None:
        self.folder, self.die_at, self.count, self.pid = folder, die_at, 0, os.getpid()

    def __call__(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(path, (str, bytes)) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if not str(Path.cwd() / os.fsdecode(path)).startswith(self.folder):
                return
        elif event not in WRITING:
            return
        if os.getpid() != self.pid:
            return
        self.count += 1
        if self.count == self.die_at:
            os.kill(self.pid, 9)


def _make_digits_few() -> None:
    from univ.data import digits

    pixels, labels, parts = digits._arrays()
    few = {"train": parts["train"][:96], "val": parts["val"][:48]}
    digits._arrays = lambda: (pixels, labels, few)


# --- what they read -------------------------------------------------------------------------------------------------


def make_study(root: Path) -> Path:
    """The inputs of all commands, below `root`; a command's are copied from there."""
    from image_files import encoded_image

    from univ.data.lmdb import write_lmdb
    from univ.models import build_model, checkpoints

    for seed, arch in enumerate(ARCHS):
        model = build_model(arch, "digits", seed=seed)
        checkpoints.save_checkpoint(root / f"cnns/eps1/{arch}.pt", model, epoch=1)
    for i in range(80):
        path = root / f"images/train/class{i % 2}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image("png", seed=i % 4))
    records = [(encoded_image("png", seed=i % 4), i % 100) for i in range(200)]
    (root / "hundred").mkdir()
    write_lmdb(root / "hundred/val.lmdb", records, [f"class {i}" for i in range(100)])
    shutil.copytree(root / "hundred", root / "lmdb")
    shutil.copyfile(root / "lmdb/val.lmdb", root / "lmdb/train.lmdb")
    rep, func = COMMANDS["rep"], COMMANDS["func"]
    probes = [("cnns/eps1/vgg11.pt", "p/vgg11_eps1"), ("cnns/eps1/resnet10.pt", "p/resnet10_eps1")]
    for command in (rep, func, *(_probe_of(*probe) for probe in probes)):
        run = Run(command, root)
        assert run.end() == 0, run.output
    return root


def _probe_of(checkpoint: str, name: str) -> Command:
    words = list(COMMANDS["probe"].words)
    words[words.index("-m") + 1], words[words.index("--run-name") + 1] = checkpoint, name
    return Command("train_probe", tuple(words), ("cnns",))


def begin(command: Command, study: Path, folder: Path) -> Path:
    """A new folder with what the command reads."""
    folder.mkdir()
    for name in command.inputs:
        (shutil.copytree if (study / name).is_dir() else shutil.copyfile)(study / name, folder / name)
    return folder


# --- what they leave ------------------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, Any]:
    """Every file below a folder, by path: the hash of its content, or the content less what tells the time.

    Of several starts of train_probe.py the finished one counts, as `start`.
    """
    finished = {}
    for path in folder.rglob("finished.json"):
        if path.parent.name == (start := json.loads(path.read_text())["start"]):
            finished[path.parent] = start
    found = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = str(path.relative_to(folder))
        starts = [part for part in path.relative_to(folder).parts if part.startswith("20") and part.count("-") == 4]
        if starts:
            where = next(parent for parent in path.parents if parent.name == starts[0])
            if where not in finished:
                continue
            name = name.replace(starts[0], "start")
        if "events.out" in name:
            continue
        clean: Callable[[str], Any] | None = _CLEAN.get(path.name) or _CLEAN.get(path.suffix)
        found[name] = clean(path.read_text()) if clean else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if "second" not in key and key != "start"}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


_CLEAN = {
    "log.jsonl": lambda text: [_timeless(json.loads(line)) for line in text.splitlines()],
    ".json": lambda text: _timeless(json.loads(text)),
}
