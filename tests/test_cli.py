"""Argument types and the way a script ends."""

import argparse
import os
import signal

import pytest
import torch

from univ import cli
from univ.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"), [("2", 2), ("2/255", 2 / 255), ("-1.5e-1", -0.15), ("3*(1+1)/4", 1.5), (" 0.5 ", 0.5)]
)
def test_numbers_and_expressions(text, value):
    assert cli.number(text) == pytest.approx(value, abs=0)


@pytest.mark.parametrize("text", ["", "two", "__import__('os')", "2**9", "1/0", "1 if 1 else 2", "[1]", "True or 1"])
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
        cli.number(text)


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
    ],
)
def test_values_out_of_range_are_named(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected|there is no|not here"):
        kind(text)


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
    parser = argparse.ArgumentParser(description="x", formatter_class=cli.HelpFormatter)
    cli.add_common_arguments(parser, precision="fp32")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: auto)" in text and "(default: fp32)" in text and "(default: False)" not in text


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        (lambda: _raise(InputError("--knn 9: too many")), 2, "error: --knn 9: too many\n"),
        (lambda: _raise(FileNotFoundError("there is no nowhere.pt")), 2, "error: there is no nowhere.pt\n"),
        (lambda: _raise(KeyboardInterrupt()), 130, "stopped\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, ""),
        (lambda: _raise(SystemExit(1)), 1, ""),
        (lambda: None, 0, ""),
    ],
    ids=["input", "missing file", "ctrl-c", "sigterm", "some work failed", "done"],
)
def test_exit_codes(main, code, words, capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            cli.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == code
    assert capsys.readouterr().err.endswith(words)


def test_a_bug_of_ours_keeps_its_traceback():
    with pytest.raises(ValueError, match="a bug"):
        cli.run(lambda: _raise(ValueError("a bug")))


def test_input_errors_show_their_traceback_on_request(monkeypatch):
    monkeypatch.setenv("UNIV_TRACEBACK", "1")

    def main():
        raise InputError("wrong")

    with pytest.raises(InputError):
        cli.run(main)


def test_precision_is_restored():
    before = torch.backends.cuda.matmul.allow_tf32
    with cli.precision("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
