"""Command lines with bad values: each ends well or with one line that names the flag, never with a traceback.

Every flag of every script gets every value of a table; what the parser lets through is run on digits, in a process of
its own with little memory and time. Choices are seeded; the slow form takes all of them.
"""

import contextlib
import io
import os
import random
import resource
import signal
import traceback
from collections import Counter
from pathlib import Path

import forks
import nbformat
import pandas as pd
import pytest
import torch
from commands import COMMANDS, module_of, parser_of
from image_files import make_image_folder
from synthetic_results import write_scores

import rep
from univ import files
from univ.data import open_images
from univ.errors import InputError
from univ.models import build_model, checkpoints
from univ.utils import folder2lmdb

# numbers, sums, devices, words, names of models, paths
PLAIN = """
    -1 0 1 2 1000000000 1000000000000 0.5 1e-320 1e30 1e38 1e400 nan -inf
    1/0 2**9**9 9e99*9e99*9e99*9e99 0x10
    mps meta xpu cpu:3 cuda:99 cuda:-1 cuda:999999999999 CPU privateuseone:0
    x None .. a/../b $x^{ %s%d%(x)s {} -
    vgg11: timm: timm:no_such torchvision: torchvision:resnet18:x torchvision:get_model :
    there.txt there.txt/below folder folder/ /dev/null /dev/full /proc/self/mem loop gone
"""
HUGE = ("9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" + "0" * 30, "9" * 5000)
LONG = ("(" * 500 + "1" + ")" * 500, "1" + "+1" * 5000, "1" + "/1" * 5000, "x" * 300, "x/" * 3000)
SIGNS = ("", " ", "cpu cuda", "a\nb", "\x1b[2J", "\0", "\udcff\udcfe", "\u202e", "é")
VALUES = (*PLAIN.split(), *HUGE, *LONG, *SIGNS)
SECONDS = 8
MEMORY = 6 * 2**30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with random digits networks, "inverted" images, a cache, and files that are of no use."""
    root = tmp_path_factory.mktemp("place") / "deep/er"  # ".." and "a/../b" stay within it
    (root / "folder").mkdir(parents=True)
    (root / "there.txt").write_text("no, \0 \ud7ff nothing\n")
    (root / "loop").symlink_to("loop")
    (root / "gone").symlink_to("nowhere/at/all")
    images, generator = open_images("digits"), torch.Generator().manual_seed(0)
    for arch in ("vgg11", "resnet10"):
        model = build_model(arch, "digits", seed=0)
        checkpoints.save_checkpoint(root / f"data/cnns/digits/eps1/{arch}.pt", model, epoch=1)
        inverted = torch.rand(20, *images[0][0].shape, generator=generator)
        files.save_torch(root / f"data/digits/inverted/{arch}_eps1.pt", inverted)
        report = pd.DataFrame({"target_index": range(20), "target_label": images.labels[:20], "seed_index": range(20)})
        report.to_csv(root / f"data/digits/inverted/{arch}_eps1.csv", index=False)
    write_scores(root / "results")
    make_image_folder(root / "images/train", 100, 1)
    with contextlib.chdir(root):
        folder2lmdb.main(["-f", "images", "--quiet"])
        rep.main(f"{COMPARE} --cache-dir cache --no-comparisons --quiet".split())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    (root / "short.ipynb").write_text(nbformat.writes(notebook))
    return root


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("OUT", raising=False)
    return place


COMPARE = "-d digits -m digits -o eps1 --model-names vgg11 resnet10 --num-inputs 20 -e 7"
TRAIN = "--dataset digits -m vgg11 -b 512 -p 1"
BASE = {  # command lines that work, by script
    "rep.py": (
        f"{COMPARE} -r all more -k 5 --overwrite",
        f"{COMPARE} -r all -k 5 -i 1",
        f"{COMPARE} -r shape",
        f"{COMPARE} -r stir -i 1",
    ),
    "func.py": (f"{COMPARE} -f all more --ci", f"{COMPARE} -f dis -i 1 -s"),
    "inversion.py": ("-d digits -m vgg11 -e eps1 -n 4 -u 300 --iterations 2 -i made --overwrite",),
    "cifar10_training.py": (
        f"{TRAIN} -s made -e 1 --overwrite",
        f"{TRAIN} -s made -e 1 --overwrite -a 1 --schedule onecycle",
        f"{TRAIN} -t 0 -v data/cnns/digits/eps1/vgg11.pt --results-file made/accuracy.csv",
    ),
    "train_probe.py": ("-d digits -m data/cnns/digits/eps1/vgg11.pt --epochs 1",),
    "subgroup_sim.py": ("--cache-dir cache -d digits --eps eps1 --overwrite --measures cka proc jacc",),
    "univ/utils/folder2lmdb.py": ("-f images --out made --overwrite",),
    "univ/utils/imagenet50.py": ("-f images --out made --overwrite",),
    "univ/utils/labels_csv.py": ("images/train.lmdb --overwrite",),
    "scripts/run_notebook.py": ("short.ipynb --timeout 20",),
    "univ/plots.py": ("--figs made --only probe_agreement jaccard_apx",),
    "scripts/report.py": ("--out made/report.html",),
}
RUN = [(script,) for script in BASE if "report" not in script and "notebook" not in script]


def base(script, rng):
    return rng.choice(BASE.get(script, ("",))).split()


def cases(rng, scripts, count):
    """(script and topic, words, the flag's spellings) for `count` of all flags and values; for all where it is None."""
    found = []
    for command in scripts:
        for action in parser_of(*command)._actions:
            if action.nargs == 0:
                continue
            for value in VALUES:
                words = [*command[1:], *base(command[0], rng)]
                flag = action.option_strings[-1:]
                words = [*words, f"{flag[0]}={value}"] if flag else [*words[1:], "--", value]
                found.append((command, words, action.option_strings or [action.dest]))
    return found if count is None else rng.sample(found, count)


def check_parser(command, words, flags):
    """ "taken" or "refused"; AssertionError where it is neither."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            module_of(command[0]).parse_args(words)
        return "taken"
    except InputError as error:
        text = str(error)
    except SystemExit as left:
        assert left.code == 2, (command, words, left.code)
        text = said.getvalue()
        assert text.count("\n") == 1 and text.rstrip("\n").isprintable(), (command, words, text)
    except Exception as error:
        raise AssertionError(f"{command} {words}: {traceback.format_exc()}") from error
    assert any(flag in text for flag in (*flags, "arguments are required")) and len(text) < 3000, (command, words, text)
    return "refused"


def test_parsers_refuse_in_one_line_that_names_the_flag(here):
    outcomes = Counter(check_parser(*case) for case in cases(random.Random(1), COMMANDS, 1500))
    assert outcomes["refused"] > 500 and outcomes["taken"] > 50


@pytest.mark.slow
def test_every_parser_refuses_every_value_in_one_line(here):
    print(Counter(check_parser(*case) for case in cases(random.Random(1), COMMANDS, None)))


def run(command, words):
    """(exit code, what was said) of a script in a process of its own; None as code where it was still busy."""
    path = Path("said.txt").absolute()
    limits = {resource.RLIMIT_AS: MEMORY}
    process = forks.command(module_of(command[0]).main, [command[0], *words], path, limits, SECONDS + 60)
    process.join(SECONDS)
    code = process.exitcode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return code, path.read_text(errors="replace") if path.exists() else ""


def check_run(command, words):
    """What became of a command that the parser takes."""
    code, said = run(command, words)
    assert code in (None, 0, 1, 2) and "Traceback" not in said, f"{command} {words}: exit code {code}\n{said[-3000:]}"
    if code == 2:
        last = said.rstrip("\n").splitlines()[-1]
        assert "error: " in last and last.isprintable(), f"{command} {words}: {said}"
    return {None: "busy", 0: "done", 1: "some failed", 2: "refused"}[code]


def taken(rng, commands, count, flags=1):
    """`count` command lines that the parsers take, with so many flags more than work."""
    every = cases(rng, commands, None)
    while count:
        command, words, names = rng.choice(every)
        for _ in range(flags - 1):  # of the same script, a value or a switch
            switches = [a.option_strings[-1] for a in parser_of(*command)._actions if a.nargs == 0 and a.dest != "help"]
            other = rng.choice([case[1][-1] for case in every if case[0] == command] + 10 * switches)
            words = [*words, other] if other.startswith("-") and "--" not in words else words
        with contextlib.suppress(AssertionError):  # names another flag than the first
            if check_parser(command, words, names) == "taken":
                count -= 1
                yield command, words


def test_what_parsers_take_ends_well_or_in_one_line(here):
    outcomes = Counter(check_run(*case) for case in taken(random.Random(2), RUN, 12))
    assert outcomes["refused"] and outcomes["done"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [1, 3])
@pytest.mark.parametrize("script", BASE)
def test_many_taken_values_end_well_or_in_one_line(script, flags, here):
    """Slow: some minutes a script, of which the endless ones take most."""
    print(script, Counter(check_run(*case) for case in taken(random.Random(3), [(script,)], 60, flags)))
