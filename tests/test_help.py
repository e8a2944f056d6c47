"""What --help and the README say: every flag explained with its default, every command line understood."""

import os
import re
import shlex
import subprocess

import pytest
from commands import COMMANDS, ROOT, SCRIPTS, module_of, parse, parser_of

from univ import cli

SHELL = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.read_text().startswith("#!"))
PAGES = (*ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md"), ROOT / "README.md")
TEXTS = [*(path.relative_to(ROOT).as_posix() for path in PAGES), *SCRIPTS]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_every_flag_with_its_default(command, capsys):
    parser = parser_of(*command)
    assert isinstance(parser, cli.Parser)
    with pytest.raises(SystemExit) as left:
        module_of(command[0]).parse_args([*command[1:], "--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "python " in parser.description or len(command) > 1
    for action in parser._actions:
        assert action.help and (not action.option_strings or action.option_strings[-1] in shown), action.option_strings
        if action.option_strings and action.default not in (None, []) and action.default is not False:
            default = action.default if isinstance(action.default, list | tuple) else [action.default]
            words = f"(default: {' '.join(map(str, default))}"
            assert words in shown or action.dest in ("help", "default_model"), (action.option_strings, words)
    assert "['" not in shown and not re.search(r"\(default: (None|False)\)", shown)


def test_what_is_compared_comes_first():
    for script, flag in (("rep.py", "-r"), ("func.py", "-f")):
        assert parser_of(script)._actions[1].option_strings[0] == flag


@pytest.mark.parametrize("script", SHELL)
@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_shell_scripts_explain_themselves_without_an_environment(script, words, tmp_path):
    """With a Python that has nothing, and no place for an environment."""
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho a python was started >&2; exit 99\n")
    python.chmod(0o755)
    (tmp_path / "bin/python").symlink_to(python)
    settings = {"PATH": f"{python.parent}{os.pathsep}/usr/bin{os.pathsep}/bin", "VENV": str(tmp_path / "venv")}
    before = sorted(ROOT.iterdir())
    shown = subprocess.run(
        ["bash", script, *words], cwd=ROOT / "scripts", env=settings, capture_output=True, text=True, timeout=20
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"bash scripts/{script}" in shown.stdout
    assert not (tmp_path / "venv").exists() and sorted(ROOT.iterdir()) == before


def test_shell_help_names_the_flags_of_its_python():
    text = (ROOT / "scripts/download_data.sh").read_text()
    flags = {action.option_strings[-1] for action in parser_of("scripts/download_data.py")._actions} - {"--help"}
    assert flags == set(re.findall(r"(?<!\S)--[a-z-]+", text)) - {"--help"}


def spelled_out(line):
    """A line for each way of {a,b} in it."""
    if (choice := re.search(r"\{([^{}]*,[^{}]*)\}", line)) is None:
        return [line]
    ways = choice.group(1).split(",")
    return [way for word in ways for way in spelled_out(line[: choice.start()] + word + line[choice.end() :])]


def command_lines(text):
    """The words after `python` of every command line in a text, without comments and what is left to the reader."""
    found = re.findall(r"(?:^|(?<=[\s`]))python ((?:-m univ|\S+\.py)\b[^`\n]*)", text, re.MULTILINE)
    for line in found:
        line = re.split(r"\s{2,}(?=[(a-z])|  #|\s+\.\.\.", line)[0]
        yield from map(shlex.split, spelled_out(line))


@pytest.mark.parametrize("name", TEXTS)
def test_command_lines_in_texts_are_understood(name, capsys):
    lines = list(command_lines((ROOT / name).read_text()))
    assert lines or name not in ("README.md", "rep.py")
    for words in lines:
        try:
            parse(words)
        except SystemExit as left:
            assert left.code in (None, 0), (words, capsys.readouterr().err)


def test_flags_in_readme_and_docs_are_flags():
    text = "".join(path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = {word for span in re.findall(r"`([^`]+)`", prose) for word in re.findall(r"(?<!\S)--?[a-z][a-z-]*", span)}
    known = {flag for command in COMMANDS for action in parser_of(*command)._actions for flag in action.option_strings}
    for script, words in re.findall(r"`([a-z_]+\.py) ([^`]*)`", prose):  # parts of command lines
        mine = {flag for action in parser_of(script)._actions for flag in action.option_strings}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", words)) <= mine, (script, words)
    others = {"--nproc-per-node", "-m", "--only"}  # of torchrun, Python, univ.plots, and Snakemake
    others |= {"--forcerun", "--forceall", "--profile", "--rulegraph", "-v", "-n"}
    assert len(named) > 15 and named - known - others == {"--slow"} & named


def test_the_lines_for_your_own_models_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    assert len(own.strip().splitlines()) <= 16
    exec(own, {})
    assert "cka" in capsys.readouterr().out
