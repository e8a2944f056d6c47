"""Each command on a disk that is too small: one line, nothing torn, and the same command works once there is room."""

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import Ended, held, run, small_disk
from writers import Command, commands, make_inputs

BEGUN = ("*.partial*", "*.parts/*", "*/.parts__*", "*/args.json", "*/events.out*", "*.jsonl")
SHORT = {"report": (0.6,), "plots": (0.6,)}  # drawing takes seconds
SHARES = (0.0, 0.6, 0.95)  # of the room that a command needs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    make_inputs(root)
    return root


NAMES = list(commands(Path()))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def prepare(command: Command, folder: Path) -> None:
    """Empty a folder but for the files that are there before."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in command.old.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def check_refusal(command: Command, ended: Ended, after: dict[str, bytes], reference: dict[str, bytes]) -> None:
    """What a command that failed says and leaves."""
    ended.assert_refused()
    for name, content in command.old.items():
        assert after[name] in (content, reference[name]) or matches(name, command.volatile), f"{name} is torn"
    if "accuracy.csv" in command.old:
        assert after == command.old
    for name, content in after.items():
        assert name in reference or matches(name, BEGUN) or command.volatile == ("*",), f"{name} is left over"
        assert ".tmp" not in name, f"{name} is left over"
        assert not name.endswith(".jsonl") or content == b"" or content.endswith(b"}\n"), f"{name} is torn"


def check_success(command: Command, ended: Ended, final: dict[str, bytes], reference: dict[str, bytes]) -> None:
    """That a command did after a failure what it does without one."""
    assert ended.code == 0, ended.said
    for name, content in reference.items():
        if command.volatile != ("*",):
            assert matches(name, command.volatile) or final[name] == content, name
        elif not matches(name, ("*events*", "*/20*", "[0-9]*_checkpoint.pt")):  # times in the name; lost with its epoch
            assert name in final, name


def try_all(
    command: Command,
    folder: Path,
    log: Path,
    attempts: list[Callable[[dict[str, bytes]], dict[str, int]]],
    make_room: Callable[[], None],
) -> int:
    """Run a command under limits; the number of those under which it failed.

    Args:
        attempts: of the files the command makes: limit the disk, or return a limit for `run`.
    """
    words = command.words(folder)
    prepare(command, folder)
    ended = run(command.main, words, log)
    assert ended.code == 0, ended.said
    reference, failures = held(folder), 0
    for limit in attempts:
        make_room()
        prepare(command, folder)
        ended = run(command.main, words, log, **limit(reference))
        if ended.code == 0:  # what is needed at once can be less than what is left in the end
            continue
        failures += 1
        check_refusal(command, ended, held(folder), reference)
        make_room()
        begun = any(folder.glob("*checkpoint*"))
        ended = run(command.main, [*words, *(command.again if begun else ())], log)
        check_success(command, ended, held(folder), reference)
    return failures


def try_small_disks(command: Command, folder: Path, resize: Callable[[int], None], shares, log: Path) -> int:
    prepare(command, folder)
    base = shutil.disk_usage(folder).used

    def limit(share: float) -> Callable[[dict[str, bytes]], dict[str, int]]:
        def of(reference: dict[str, bytes]) -> dict[str, int]:
            pages = sum(-(-len(content) // 4096) for content in reference.values())
            resize(base + int(share * (4096 * pages - base)) // 4096 * 4096)
            return {}

        return of

    return try_all(command, folder, log, [limit(share) for share in shares], lambda: resize(64 << 20))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_harms_nothing(name, inputs, tmp_path):
    with small_disk(tmp_path / "disk") as resize:
        command, shares = commands(inputs)[name], SHORT.get(name, SHARES)
        assert try_small_disks(command, tmp_path / "disk", resize, shares, tmp_path / "log") > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_disks_of_many_sizes(name, inputs, tmp_path):
    shares = [step / 20 for step in range(20)]
    with small_disk(tmp_path / "disk") as resize:
        failures = try_small_disks(commands(inputs)[name], tmp_path / "disk", resize, shares, tmp_path / "log")
    print(f"{name}: {failures} of {len(shares)} disks were too small, each answered with one line")


@pytest.mark.parametrize("name", ["evaluate", "probe", "pack"])
def test_a_file_that_may_not_grow_is_one_line_and_harms_nothing(name, inputs, tmp_path):
    """What a quota on files does, where no file system can be mounted."""
    folder = tmp_path / "out"
    folder.mkdir()
    command = commands(inputs)[name]

    def limit(reference: dict[str, bytes]) -> dict[str, int]:
        return {"file_size": max(map(len, reference.values())) - 20}

    assert try_all(command, folder, tmp_path / "log", [limit], lambda: None) == 1
