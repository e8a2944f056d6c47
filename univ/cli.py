"""What the scripts share: argparse types and groups, and the end of every run (one-line errors, exit codes).

Exit codes: 0 done, 1 some of the work failed (named in the log), 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from univ import files
from univ.errors import InputError, plain

MOST = 2**48  # of anything that is counted: products with others stay within 64 bits
LARGEST = 1e30  # of a number: what is derived from it stays within float32
MOST_PROCESSES = 1024
LONGEST_LINE = 2000  # characters of an error


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples of a script's docstring as they are and adds the default to every flag's help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if not action.option_strings or default in (None, [], argparse.SUPPRESS) or default is False:
            return action.help
        words = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{action.help} (default: {words.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """A parser that answers every word it cannot use with one line, which names the flag, and exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **settings)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if "\0" in arg_string or not _is_unicode(arg_string):
            raise argparse.ArgumentError(action, f"{arg_string!r} is not UTF-8 text")
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{one_line(f'{self.prog}: error: {message}')} (see --help)\n")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)  # what was no UTF-8 comes as surrogates


def one_line(text: object) -> str:
    """`text` as one line that a terminal shows as it is: control characters are escaped, newlines become semicolons."""
    line = plain("; ".join(filter(None, map(str.strip, str(text).splitlines()))))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


# --- argument types -------------------------------------------------------------------------------------------------


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise argparse.ArgumentTypeError(message)


def _integers(least: int, most: int = MOST) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # words, and more digits than Python reads
            value = least - 1
        _demand(least <= value <= most, f"expected an integer from {least} to {most}, got {text}")
        return value

    return integer


positive_int, non_negative_int = _integers(1), _integers(0)
seed = _integers(0, 2**63 - 1)  # what every generator of random numbers takes
processes, some_processes = _integers(0, MOST_PROCESSES), _integers(1, MOST_PROCESSES)  # 0: the process itself works


def number(text: str) -> float:
    """A number, or a product or quotient of numbers such as 2/255; not too large for float32."""
    first, *rest = re.split("([*/])", text)
    try:
        value = float(first)
        for sign, factor in zip(rest[::2], rest[1::2]):
            value = value * float(factor) if sign == "*" else value / float(factor)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a number, or one such as 2/255, got {text!r}") from error
    # NaN is refused too
    _demand(abs(value) <= LARGEST, f"expected a number from {-LARGEST:g} to {LARGEST:g}, got {text!r}")
    return value


def _numbers(which: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    def bounded(text: str) -> float:
        value = number(text)
        _demand(allowed(value), f"expected a number {which}, got {text}")
        return value

    return bounded


positive_number = _numbers("above 0", lambda value: value > 0)
non_negative_number = _numbers("of at least 0", lambda value: value >= 0)
fraction = _numbers("from 0 to 1", lambda value: 0 <= value <= 1)
share = _numbers("between 0 and 1", lambda value: 0 < value < 1)


def path(text: str) -> Path:
    """A path that something has or can have, to be read or written."""
    control = re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    _demand(bool(text) and not control, f"expected a path without control characters, got {text!r}")
    try:
        Path(text).stat()
    except FileNotFoundError:
        pass  # it may be made
    except OSError as error:  # too long, below a file, no permission
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    return Path(text)


def existing_path(text: str) -> Path:
    """The path of a file or folder that is there."""
    place = path(text)
    _demand(place.exists(), f"there is no file or folder {text}")
    return place


def existing_file(text: str) -> Path:
    """The path of a file that is there."""
    place = path(text)
    _demand(not place.is_dir(), f"{text} is a folder, expected a file")
    _demand(place.is_file(), f"there is no file {text}")
    return place


def existing_dir(text: str) -> Path:
    """The path of a folder that is there."""
    place = path(text)
    _demand(place.is_dir(), f"there is no folder {text}")
    return place


def folder(text: str) -> Path:
    """The path of a folder that is there or to be made."""
    place = path(text)
    _demand(place.is_dir() or not place.exists(), f"{text} is a file, expected a folder")
    return place


def output_dir(text: str) -> Path:
    """The path of a folder that can be written."""
    return _writable(folder(text))


def output_file(text: str) -> Path:
    """The path of a file that can be written."""
    place = path(text)
    try:
        files.destination(place)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return _writable(place)


def _writable(wanted: Path) -> Path:
    """`wanted`, if it and the folder to hold it can be written: found out before the work, not after it."""
    nearest = next(place for place in (wanted.absolute(), *wanted.absolute().parents) if place.exists())
    for place in {nearest, nearest if nearest.is_dir() else nearest.parent}:
        _demand(os.access(place, os.W_OK), f"{place} cannot be written")
    return wanted


def device(text: str) -> torch.device:
    """A torch device; `auto` is CUDA where there is one, else the CPU.

    A CUDA device comes with its index, which is that of this process under torchrun, and is made the current one:
    otherwise the thread that pins batches, and libraries, would work on the first.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    named = re.fullmatch(r"cpu|cuda(?::(\d{1,9}))?", text)
    _demand(named is not None, f"unknown device {text!r}: expected cpu, cuda or cuda:<n>")
    if text == "cpu":
        return torch.device("cpu")
    index, count = int(named[1] or os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    _demand(index < count, f"cuda:{index} is not here: this machine has {count} CUDA devices")
    chosen = torch.device("cuda", index)
    torch.cuda.set_device(chosen)
    return chosen


# --- what scripts share ---------------------------------------------------------------------------------------------


def add_common_arguments(parser: argparse.ArgumentParser, *, workers: int = 4, precisions: Sequence[str] = ()) -> None:
    """Add --device, --seed, --quiet and, unless the script has its own, --workers.

    Args:
        precisions: add --precision with these choices, of which the first is the default.
    """
    group = parser.add_argument_group("common")
    group.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda or cuda:<n>; auto: CUDA if there is one"
    )
    group.add_argument("--seed", type=seed, default=0, help="seed of everything random")
    if not any("--workers" in action.option_strings for action in parser._actions):
        group.add_argument("--workers", type=processes, default=workers, help="processes that decode images")
    if precisions:
        text = "arithmetic of the networks: fp32 is exact, the others are faster on CUDA"
        group.add_argument("--precision", choices=precisions, default=precisions[0], help=text)
    group.add_argument("--quiet", action="store_true", help="warnings and errors only: no progress bars")


def add_pixel_statistics(group: argparse._ArgumentGroup) -> None:
    """Add --mean and --std."""
    text = "of the pixels in [0, 1], for a module: that does not normalise by itself; R G B, both or none"
    group.add_argument("--mean", type=number, nargs=3, metavar=("R", "G", "B"), help=f"mean {text}")
    group.add_argument(
        "--std", type=positive_number, nargs=3, metavar=("R", "G", "B"), help=f"standard deviation {text}"
    )


def add_fast_images(group: argparse._ArgumentGroup) -> None:
    """Add --fast-images."""
    text = "ImageNet: decode and resize nearly twice as fast, pixels off by up to 2/255; never mixed with exact ones"
    group.add_argument("--fast-images", action="store_true", help=text)


def _stop_on_sigterm(signum: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + signum)  # unwinds like Ctrl-C, so that temporary files are removed


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and leave with the right exit code; wrong input is answered with one line, no traceback.

    `UNIV_TRACEBACK=1` in the environment shows the traceback all the same.
    """
    signal.signal(signal.SIGTERM, _stop_on_sigterm)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left (`| head`): what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        too_large = _is_too_large(error)
        if os.environ.get("UNIV_TRACEBACK") or (isinstance(error, RuntimeError) and not too_large):
            raise
        message = f"not enough memory: lower {_size_flags()} ({error})" if too_large else error
        print(one_line(f"{Path(sys.argv[0]).name}: error: {message}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _is_too_large(error: Exception) -> bool:
    """Whether memory ran out, which torch reports as a RuntimeError unless it is a GPU's."""
    words = r"alloc\w* memory|out of memory|size calculation overflowed"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def _size_flags() -> str:
    """The flags of this command line that are numbers of things, with their values: one of them is too large."""
    words = "\0".join(word.replace("=", "\0", 1) for word in sys.argv[1:])
    flags = re.findall(r"(?:^|(?<=\0))(--?[a-z][a-z-]*)\0?(\d+)(?=\0|$)", words)
    return " or ".join(" ".join(flag) for flag in flags) or "-b/--batch"
