"""What the scripts share: argparse types and groups, and the end of every run (one-line errors, exit codes).

Exit codes: 0 done, 1 some of the work failed (named in the log), 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import ast
import contextlib
import operator
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from univ.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples of a script's docstring as they are and adds the default to every flag's help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], ()):
            return action.help
        return super()._get_help_string(action)


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def non_negative_int(text: str) -> int:
    """An integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text}")
    return value


_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def number(text: str) -> float:
    """A number, or an expression of numbers with + - * / such as 2/255. Nothing else is evaluated."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as constant):
                return float(constant)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(text)

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a number or an expression such as 2/255, got {text!r}") from error


def positive_number(text: str) -> float:
    """A number, or expression, above 0."""
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def non_negative_number(text: str) -> float:
    """A number, or expression, of at least 0."""
    value = number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def existing_file(text: str) -> Path:
    """The path of a file that is there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, expected a file")
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def existing_path(text: str) -> Path:
    """The path of a file or folder that is there."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no file or folder {text}")
    return path


def existing_dir(text: str) -> Path:
    """The path of a folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


def device(text: str) -> torch.device:
    """A torch device; `auto` is CUDA where there is one, else the CPU.

    A CUDA device comes with its index, which is that of this process under torchrun, and is made the current one:
    otherwise the thread that pins batches, and libraries, would work on the first.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"unknown device {text!r}: expected cpu, cuda or cuda:<n>") from error
    if found.type != "cuda":
        return found
    if found.index is None:
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if found.index >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"{found} is not here: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    torch.cuda.set_device(found)
    return found


def add_common_arguments(parser: argparse.ArgumentParser, *, workers: int = 4, precision: str | None = None) -> None:
    """Add --device, --seed, --quiet and, unless the script has its own, --workers; --precision where it makes sense."""
    group = parser.add_argument_group("common")
    group.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda or cuda:<n>; auto: CUDA if there is one"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of everything random")
    if not any("--workers" in action.option_strings for action in parser._actions):
        group.add_argument("--workers", type=non_negative_int, default=workers, help="processes that decode images")
    if precision is not None:
        text = "arithmetic of the networks: fp32 is exact, the others are faster on CUDA"
        group.add_argument("--precision", choices=PRECISIONS, default=precision, help=text)
    group.add_argument("--quiet", action="store_true", help="warnings and errors only: no progress bars")


def add_fast_images(group: argparse._ArgumentGroup) -> None:
    """Add --fast-images."""
    text = "ImageNet: decode and resize nearly twice as fast, pixels off by up to 2/255; never mixed with exact ones"
    group.add_argument("--fast-images", action="store_true", help=text)


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Run the block's networks in a precision: fp32 without TF32, TF32, or autocast to bf16 or fp16."""
    tf32 = name != "fp32"
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    try:
        with torch.autocast(device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _stop_on_sigterm(signum: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + signum)  # unwinds like Ctrl-C, so that temporary files are removed


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and leave with the right exit code; wrong input is answered with one line, no traceback.

    `UNIV_TRACEBACK=1` in the environment shows the traceback all the same.
    """
    signal.signal(signal.SIGTERM, _stop_on_sigterm)
    try:
        main()
    except (InputError, OSError) as error:
        if os.environ.get("UNIV_TRACEBACK"):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
