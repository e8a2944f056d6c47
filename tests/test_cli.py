"""Argument types and the way a script ends."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from univ import cli
from univ.errors import InputError

PATHS = (cli.path, cli.existing_path, cli.existing_file, cli.existing_dir, cli.folder, cli.output_dir, cli.output_file)


@pytest.mark.parametrize(
    ("text", "value"), [("2", 2), ("2/255", 2 / 255), ("-1.5e-1", -0.15), ("3*2/4", 1.5), (" 0.5 ", 0.5)]
)
def test_numbers_and_expressions(text, value):
    assert cli.number(text) == pytest.approx(value, abs=0)


@pytest.mark.parametrize(
    "text", ["", "two", "3*(1+1)", "__import__('os')", "2**9", "1/0", "1 if 1 else 2", "[1]", "True or 1"]
)
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
        cli.number(text)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "1e39", "1e200*1e200", "-1e39", "9" * 400, "9" * 9000])
def test_numbers_beyond_float32_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a number from -1e\+30 to 1e\+30, got"):
        cli.number(text)


@pytest.mark.parametrize("text", [str(2**63), "1" + "0" * 30, "9" * 5000, "-" + "9" * 30, "1.5", "x", "", "1e3"])
@pytest.mark.parametrize("kind", [cli.positive_int, cli.non_negative_int, cli.seed, cli.processes])
def test_integers_are_of_64_bits(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected an integer from [01] to \d+, got"):
        kind(text)


def test_the_largest_values_are_taken():
    assert cli.seed(str(2**63 - 1)) == 2**63 - 1 and cli.positive_int(str(2**48)) == 2**48
    torch.manual_seed(2**63 - 1)
    torch.manual_seed(0)
    assert (cli.processes("0"), cli.processes("1024"), cli.fraction("0"), cli.fraction("1")) == (0, 1024, 0, 1)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (cli.positive_int, "0"),
        (cli.non_negative_int, "-1"),
        (cli.positive_number, "0"),
        (cli.non_negative_number, "-1/2"),
        (cli.existing_file, "/"),
        (cli.existing_file, "no such file"),
        (cli.existing_path, "no such file"),
        (cli.existing_dir, "no such folder"),
        (cli.device, "gpu"),
        (cli.device, "cuda:99"),
        *(
            (cli.device, text)
            for text in ("mps", "meta", "xpu", "cpu:3", "cuda:", "cuda:-1", "", "\0", "privateuseone")
        ),
        (cli.processes, "1025"),
        (cli.some_processes, "0"),
        (cli.fraction, "2"),
        *((kind, text) for kind in PATHS for text in ("", "a\nb", "\x1b[31m", "/etc/passwd/below")),
        (cli.existing_dir, "/etc/passwd"),
        (cli.folder, "/etc/passwd"),
        (cli.output_dir, "/etc/passwd"),
        (cli.output_file, "/"),
        (cli.output_file, "/dev/null"),
    ],
)
def test_values_out_of_range_are_named(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected|there is no|not here|Not a directory|cannot"):
        kind(text)


@pytest.mark.parametrize("kind", PATHS)
def test_paths_too_long_are_refused(kind):
    for text in ("x" * 300, "x/" * 3000):
        with pytest.raises(argparse.ArgumentTypeError, match="File name too long"):
            kind(text)


def test_what_cannot_be_written_is_found_out_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "there.csv").touch()
    assert cli.output_file(str(tmp_path / "there.csv")).exists()
    assert cli.output_dir(str(tmp_path / "new/one")) == tmp_path / "new/one"
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # root may write everywhere
    for kind, text in ((cli.output_file, "there.csv"), (cli.output_file, "new/one.csv"), (cli.output_dir, "new/one")):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{tmp_path} cannot be written")):
            kind(str(tmp_path / text))


def test_auto_device_is_a_device():
    assert cli.device("auto") == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("text", "local_rank", "index"), [("auto", None, 0), ("cuda", None, 0), ("cuda", "2", 2), ("cuda:1", "2", 1)]
)
def test_a_cuda_device_has_an_index_and_is_the_current_one(text, local_rank, index, monkeypatch):
    """Tensors say they are on `cuda:0`, which is not equal to `cuda`; threads work on the current device."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    device = torch.device("cuda", index)
    assert cli.device(text) == device and current == [device]


def test_help_shows_defaults(capsys):
    parser = cli.Parser(description="x")
    parser.add_argument("--ridge", type=cli.number, default=0.0, help="of the solver")
    parser.add_argument("--list", nargs="+", default=["a", "b%"], help="of things")
    parser.add_argument("--nothing", nargs="+", default=[], help="at all")
    cli.add_common_arguments(parser, precisions=("fp32", "tf32"))
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: auto)" in text and "(default: fp32)" in text and "(default: False)" not in text
    assert "everything random (default: 0)" in text and "solver (default: 0.0)" in text
    assert "things (default: a b%)" in text and "[]" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "argument --seed: expected an integer from 0 to 9223372036854775807, got -1"),
        (["--seed", "1\n2"], "argument --seed: expected an integer from 0 to 9223372036854775807, got 1; 2"),
        (["--seed", "\x1b[31m"], "argument --seed: expected an integer from 0 to 9223372036854775807, got \\x1b[31m"),
        (["--device", "\udcff"], "argument --device: '\\udcff' is not UTF-8 text"),
        (["--device", "cpu\0"], "argument --device: 'cpu\\x00' is not UTF-8 text"),
        (["--no-such", "\x1b[31m"], "unrecognized arguments: --no-such \\x1b[31m"),
    ],
)
def test_refused_words_are_one_line_that_names_the_flag(words, message, capsys):
    parser = cli.Parser(prog="script")
    cli.add_common_arguments(parser)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(words)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"script: error: {message} (see --help)\n"


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: _raise(InputError("--knn 9: too many")), 2, "error: --knn 9: too many\n"),
        (lambda: _raise(FileNotFoundError("there is no nowhere.pt")), 2, "error: there is no nowhere.pt\n"),
        (lambda: _raise(InputError("a\n\n  b\x1b[2J\u202e\n")), 2, "error: a; b\\x1b[2J\\u202e\n"),
        (lambda: _raise(InputError("x" * 10**6)), 2, "x...\n"),
        (lambda: _raise(MemoryError()), 2, "not enough memory: lower -b 99 or --knn 7 or -p 3 ()\n"),
        (lambda: torch.empty(2**62), 2, "calculation overflowed with sizes=[4611686018427387904])\n"),
        (lambda: torch.empty(2**50), 2, "Error code 12 (Cannot allocate memory))\n"),
        (lambda: np.empty(2**50), 2, "8.00 PiB for an array with shape (1125899906842624,) and data type float64)\n"),
        (lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")), 2, " (CUDA out of memory)\n"),
        (lambda: _raise(KeyboardInterrupt()), 130, "stopped\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, ""),
        (lambda: _raise(SystemExit(1)), 1, ""),
        (lambda: None, 0, ""),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:30],
)
def test_exit_codes(main, code, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rep.py", "-b", "99", "--knn=7", "-r", "cka", "-p3"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            cli.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == code
    said = capsys.readouterr().err
    assert said.endswith(words) and said.count("\n") <= 1 and len(said) < 3000


@pytest.mark.parametrize(
    ("reader", "code", "said"),
    [("| head -n 1", 141, ""), ("> /dev/full", 2, "-c: error: [Errno 28] No space left on device\n")],
)
def test_output_that_cannot_be_written_ends_the_script(reader, code, said):
    """A reader that leaves is no error of ours, a full disk is; neither ends in a traceback."""
    script = "from univ import cli; cli.run(lambda: print('a line\\n' * 100_000))"
    command = f'"$0" -c "$1" {reader}; exit ${{PIPESTATUS[0]}}'
    words = ["bash", "-c", command, sys.executable, script]
    done = subprocess.run(words, cwd=Path(cli.__file__).parents[1], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, said)


def test_bugs_of_ours_and_errors_on_request_keep_their_traceback(monkeypatch):
    for error in (ValueError("a bug"), RuntimeError("a bug")):
        with pytest.raises(type(error), match="a bug"):
            cli.run(lambda error=error: _raise(error))
    monkeypatch.setenv("UNIV_TRACEBACK", "1")
    with pytest.raises(InputError):
        cli.run(lambda: _raise(InputError("wrong")))
