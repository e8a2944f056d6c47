"""Every Python command of the repository: its module, its parser, and how a command line is parsed where no file is."""

import argparse
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch

from univ import cli

ROOT = Path(__file__).resolve().parent.parent
TOPICS = ("measures", "training", "inversion", "attacks", "loading", "layers")
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "scripts", "univ", "univ/utils")
    for path in (ROOT / folder).glob("*.py")
    if "def parse_args" in path.read_text()
)
COMMANDS = [
    (script, *topic) for script in SCRIPTS for topic in ([(name,) for name in TOPICS] if "bench" in script else [()])
]
"""Scripts, with the word that chooses among the parsers of those that have several."""


def module_of(script: str) -> ModuleType:
    """The module of a script, named by its path below the repository."""
    if not script.startswith("scripts/"):
        return importlib.import_module(script.removesuffix(".py").replace("/", "."))
    name = Path(script).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        sys.path.append(str(ROOT / "scripts"))
    return sys.modules[name]


class _Found(Exception):
    pass


def parser_of(script: str, *topic: str) -> argparse.ArgumentParser:
    """The parser that a script's command line goes to."""

    def stop(parser, *words):
        raise _Found(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            module_of(script).parse_args(list(topic))
        except _Found as found:
            return found.args[0]
    raise AssertionError(f"{script} parses nothing")


@contextlib.contextmanager
def any_path() -> Iterator[None]:
    """Within the block the files and devices that flags name need not be there."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(cli, "device", lambda text: torch.device("cpu")))
        for name in ("existing_file", "existing_dir", "existing_path"):
            stack.enter_context(mock.patch.object(cli, name, Path))
        yield


def parse(words: list[str]) -> argparse.Namespace:
    """What `python` makes of the words after it, files or none; SystemExit where it does not understand them."""
    if words[0] == "-m":
        words = [words[1].replace(".", "/") + ".py", *words[2:]]
    with any_path():
        return module_of(words[0]).parse_args(words[1:])
