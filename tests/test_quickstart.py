"""The quickstart's smoke form, from nothing to the summary: stopped, continued, and run again."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/quickstart.py"
STAGES = 9


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(out):
    words = [sys.executable, SCRIPT, "--smoke", "--out", out]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)


def mean_score(path):
    scores = pd.read_csv(path, index_col=0).to_numpy()
    return (scores.sum() - scores.trace()) / (scores.size - len(scores))


def test_smoke(tmp_path):
    with (tmp_path / "first.txt").open("w") as output:
        words = [sys.executable, SCRIPT, "--smoke", "--out", tmp_path]
        first = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ})
        for _ in range(1200):  # until some job is done, two minutes at most
            if (tmp_path / "results/digits/commands.json").exists() or first.poll() is not None:
                break
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == 143, (tmp_path / "first.txt").read_text()
    done_before = list(tmp_path.glob("data/cnns/digits/*/*.pt"))
    assert 1 <= len(done_before) < 8
    times = {path: path.stat().st_mtime_ns for path in done_before}

    second = run(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path: path.stat().st_mtime_ns for path in done_before} == times  # continued, not begun again
    assert len(re.findall(r"^\[\d/9\]", second.stdout, flags=re.MULTILINE)) == STAGES

    summary = (tmp_path / "results/digits/summary.md").read_text()
    assert summary in second.stdout
    for heading in ("Accuracy", "Similarity", "Inverted images", "probes"):
        assert heading in summary
    figures = {path.name for path in (tmp_path / "figs").glob("*.p*")}
    for name in ("similarity_inverted", "inverted_digits", "probe_agreement", "agreement_standard"):
        assert {f"{name}.png", f"{name}.pdf"} <= figures
    # the study's effect on inverted images is large at any scale and seed
    cka = [mean_score(tmp_path / f"results/cka/inverted/10000/digits/cka_{eps}_0.csv") for eps in ("eps0", "eps1")]
    assert cka[1] > cka[0]
    accuracy = {}
    for eps in ("eps0", "eps1"):
        rows = pd.concat(pd.read_csv(path) for path in (tmp_path / "results/digits/accuracy").glob(f"*_{eps}.csv"))
        accuracy[eps] = rows[rows.attack_eps > 0].acc.mean()
    assert accuracy["eps1"] > accuracy["eps0"] + 5  # percent, under the same attack

    third = run(tmp_path)
    assert third.returncode == 0
    assert third.stdout.count("done already") == STAGES


def test_a_job_is_done_only_if_the_same_command_made_its_output(quickstart, tmp_path):
    commands = quickstart.Commands(tmp_path / "commands.json")
    job = quickstart.Job("a", "rep", ("-r", "cka"), tmp_path / "a.csv")
    assert not commands.done(job)
    job.output.touch()
    assert not commands.done(job)
    commands.add(job)
    again = quickstart.Commands(tmp_path / "commands.json")
    assert again.done(job)
    assert not again.done(quickstart.Job("a", "rep", ("-r", "proc"), tmp_path / "a.csv"))


def test_a_failing_job_is_named_with_the_end_of_its_log(quickstart, tmp_path, capsys):
    job = quickstart.Job("a", "rep", ("-d", "nothing"), tmp_path / "a.csv")
    problem = quickstart.run_job(job, tmp_path / "a.log")
    assert problem == "exit code 2"
    assert "invalid choice: 'nothing'" in (tmp_path / "a.log").read_text()


def test_fresh_removes_the_digits_and_nothing_else(quickstart, tmp_path):
    plan = quickstart.Plan(tmp_path, quickstart.SMOKE, 0)
    mine = [
        "cka/standard/10000/digits/cka_eps0_0.csv",
        "jaccard/inverted/cos_sim/digits/jac.csv",
        "indices/digits/i.csv",
    ]
    others = ["cka/standard/10000/cifar10/cka_eps0_0.csv", "probing/probe_agreement.csv", "indices/imagenet/i.csv"]
    for name in (*mine, *others):
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name).touch()
    plan.remove_made()
    left = {str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.csv")}
    assert left == set(others)
