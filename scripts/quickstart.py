"""The whole study on scikit-learn's handwritten digits: train, invert, compare, probe, draw, sum up.

    bash scripts/quickstart.sh            (makes the environment first)
    python scripts/quickstart.py --smoke

Every step is one of the repository's commands, run in a pool of processes; what they print is in logs/quickstart/.
A job whose output is there, made by the same command, is skipped, and a killed run continues where it was.
"""

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the scripts and univ

ARCHS = ("vgg11", "resnet10", "densenet17", "resnext14_4x32d")
RADIUS = {"eps0": 0, "eps1": 1, "eps2": 2}
INPUTS = ("standard", "inverted")  # by -i
NOTEBOOKS = ("data_effect", "rep_vs_pred_sim", "probe_agreement", "inv_img_example")


@dataclass(frozen=True)
class Scale:
    """How much of everything; `smoke` only shows that all of it works."""

    eps: tuple[str, ...]
    epochs: int
    batch: int
    attack_steps: int  # of the evaluation's PGD
    inverted: int
    iterations: int


FULL = Scale(("eps0", "eps1", "eps2"), epochs=6, batch=64, attack_steps=20, inverted=200, iterations=100)
SMOKE = Scale(("eps0", "eps1"), epochs=2, batch=32, attack_steps=5, inverted=48, iterations=40)


@dataclass(frozen=True)
class Job:
    """One command: the module that holds its `main`, its words, and the file that is there when it is done.

    Attributes:
        publish: copy the output here when it is done.
    """

    name: str
    module: str
    argv: tuple[str, ...]
    output: Path
    publish: Path | None = None

    @property
    def command(self) -> str:
        """The command line a person would type."""
        return shlex.join(["python", f"{self.module}.py", *self.argv])


@dataclass(frozen=True)
class Stage:
    """Jobs that may run side by side, after those of the stages before; `wrote` is where their files are."""

    name: str
    jobs: list[Job]
    wrote: Path


class Plan:
    """Every command of the study on digits, with its files below `out`."""

    def __init__(self, out: Path, scale: Scale, seed: int) -> None:
        self.scale = scale
        self.results = out / "results"
        self.runs = out / "runs"
        self.figs = out / "figs"
        self.data = out / "data"
        self.cache = self.results / "digits/cache"
        self.cnns = self.data / "cnns/digits"
        self.inverted = self.data / "digits/inverted"
        self.accuracy = self.results / "digits/accuracy"
        self.robust = scale.eps[-1]
        self.common = ("--device", "cpu", "--seed", seed, "--quiet")

    def job(self, name: str, module: str, output: Path, *words: object, publish: Path | None = None) -> Job:
        return Job(name, module, tuple(map(str, (*words, *self.common))), output, publish)

    def train(self, arch: str, eps: str) -> Job:
        radius = RADIUS[eps]
        folder = self.runs / "training/digits" / eps / arch
        attack = ("-a", 1, "-o", radius, "-l", f"2*{radius}/3", "-p", 3) if radius else ("-a", 0)
        schedule = ("-e", self.scale.epochs, "-b", self.scale.batch, "--schedule", "onecycle", "-k", 0, "--resume")
        words = ("--dataset", "digits", "-m", arch, "-s", folder, *attack, *schedule)
        model = f"{arch}.pt"
        return self.job(f"{arch} {eps}", "cifar10_training", folder / model, *words, publish=self.cnns / eps / model)

    def evaluate(self, arch: str, eps: str) -> Job:
        table = self.accuracy / f"{arch}_{eps}.csv"
        attack = ("-o", 1, "-p", self.scale.attack_steps, "-l", f"2.5/{self.scale.attack_steps}", "-b", 64)
        words = ("--dataset", "digits", "-t", 0, "-m", arch, "-v", self.cnns / eps / f"{arch}.pt", *attack)
        return self.job(f"{arch} {eps}", "cifar10_training", table, *words, "--results-file", table)

    def invert(self, arch: str, eps: str) -> Job:
        size = ("-n", self.scale.inverted, "-u", 360, "--iterations", self.scale.iterations, "--step-size", 1)
        places = ("-i", self.inverted, "--model-dir", self.cnns / eps)
        words = ("-d", "digits", "-m", arch, "-e", eps, *size, "-b", 200, *places)
        return self.job(f"{arch} {eps}", "inversion", self.inverted / f"{arch}_{eps}.pt", *words)

    def compare(self, script: str, measures: Sequence[object], last: str, eps: str, inv: int) -> Job:
        folders = ("--model-dir", self.cnns / eps, "--inverted-imgs-dir", self.inverted)
        places = (*folders, "--index-file-dir", self.results / "indices", "--cache-dir", self.cache)
        words = ("-d", "digits", "-m", "digits", "-o", eps, "-i", inv, *measures, *places, "--results", self.results)
        output = self.results / last.format(input=INPUTS[inv], eps=eps)
        return self.job(f"{eps} {INPUTS[inv]}", script, output, *words)

    def represent(self, eps: str, inv: int) -> Job:
        words = ("-r", "paper", "mag", "con", "-k", 10)
        return self.compare("rep", words, "rtd/{input}/digits/rtd_mean_{eps}_0.csv", eps, inv)

    def predict(self, eps: str, inv: int) -> Job:
        words = ("-f", "dis", "norm", "kappa", "jsd")
        return self.compare("func", words, "jsd/{input}/digits/jsd_{eps}_0.csv", eps, inv)

    def subgroups(self, inv: int) -> Job:
        folder = self.results / "subgroups/digits" / INPUTS[inv]
        words = ("--dataset", "digits", "--eps", self.scale.eps[0], self.robust, "--inv", inv)
        places = ("--cache-dir", self.cache, "--results", folder)
        return self.job(INPUTS[inv], "subgroup_sim", folder / "repsim_subgroups.csv", *words, *places)

    def probe(self, arch: str) -> Job:
        name = f"digits/{arch}_{self.robust}"
        words = ("-m", self.cnns / self.robust / f"{arch}.pt", "-d", "digits", "-b", 64, "--epochs", 10)
        places = ("--run-name", name, "--runs", self.runs / "probes")
        return self.job(arch, "train_probe", self.runs / "probes" / name / "finished.json", *words, *places)

    def compare_probes(self) -> Job:
        table = self.results / "probing/digits/probe_agreement.csv"
        return self.job("all pairs", "compare_probes", table, "--runs", self.runs / "probes/digits", "--out", table)

    def notebook(self, name: str) -> Job:
        folders = {"--results": self.results, "--figs": self.figs, "--data": self.data, "--runs": self.runs}
        out = self.figs / "notebooks"
        words = [ROOT / "notebooks" / f"{name}.ipynb", "--out", out]
        words += [word for pair in folders.items() for word in pair]
        return Job(name, "run_notebook", tuple(map(str, words)), out / f"{name}.ipynb")

    def report(self) -> Job:
        page = self.results / "digits/report.html"
        words = ("--results", self.results, "--data", self.data, "--out", page, "--quiet")
        return Job("one page", "report", tuple(map(str, words)), page)

    def stages(self) -> list[Stage]:
        """Every stage in order."""
        models = [(arch, eps) for eps in reversed(self.scale.eps) for arch in ARCHS]  # the longest jobs first
        settings = [(eps, inv) for inv in (1, 0) for eps in self.scale.eps]
        return [
            Stage("train", [self.train(*pair) for pair in models], self.cnns),
            Stage("evaluate", [self.evaluate(*pair) for pair in models], self.accuracy),
            Stage("invert", [self.invert(*pair) for pair in models], self.inverted),
            Stage("compare representations", [self.represent(*pair) for pair in settings], self.results),
            Stage("compare predictions", [self.predict(*pair) for pair in settings], self.results),
            Stage("compare subgroups", [self.subgroups(inv) for inv in (0, 1)], self.results / "subgroups/digits"),
            Stage("train probes", [self.probe(arch) for arch in ARCHS], self.runs / "probes/digits"),
            Stage("compare probes", [self.compare_probes()], self.results / "probing/digits"),
            Stage("draw figures", [*(self.notebook(name) for name in NOTEBOOKS), self.report()], self.figs),
        ]

    def remove_made(self) -> None:
        """Remove what earlier runs made of the digits, and nothing of other data sets."""
        results = [self.results / "digits", self.results / "indices/digits", self.results / "subgroups/digits"]
        results += [self.results / "probing/digits", *self.results.glob("*/*/**/digits")]
        trained = [self.cnns, self.inverted, self.runs / "training/digits", self.runs / "probes/digits"]
        for folder in (*results, *trained, self.figs / "notebooks"):
            shutil.rmtree(folder, ignore_errors=True)


class Commands:
    """The command that made each output, kept in one JSON file: a job is done if the same command made its output."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_output: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def done(self, job: Job) -> bool:
        there = job.output.exists() and (job.publish is None or job.publish.exists())
        return there and self.by_output.get(str(job.output)) == job.command

    def add(self, job: Job) -> None:
        self.by_output[str(job.output)] = job.command
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.by_output, indent=1) + "\n")
        temporary.replace(self.path)


def start_worker(threads: int) -> None:
    """Prepare a process of the pool: its share of the cores, Ctrl-C left to the parent, whose end is its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)  # NumPy's, read when it is imported
    import torch

    from univ import runs

    torch.set_num_threads(threads)
    runs.die_with_parent()


def run_job(job: Job, log: Path) -> str | None:
    """Run a job in this process, its output going to `log`; return what went wrong, or None."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        print(job.command)
        try:
            importlib.import_module(job.module).main(list(job.argv))
            if not job.output.exists():
                return f"it ended but did not write {job.output}"
            if job.publish is not None:
                from univ import files

                files.copy(job.output, job.publish)
        except SystemExit as left:
            if left.code not in (None, 0):
                return f"exit code {left.code}"
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


def run_stage(stage: Stage, pool: concurrent.futures.Executor, commands: Commands, logs: Path, title: str) -> None:
    """Run the jobs of a stage that are not done, with a bar.

    Raises:
        SystemExit: a job failed; the message ends with the end of its log.
    """
    todo = [job for job in stage.jobs if not commands.done(job)]
    if not todo:
        print(f"{title}: done already", flush=True)
        return
    started = time.monotonic()
    names = {}
    for job in todo:
        log = logs / stage.name.replace(" ", "_") / f"{job.name.replace(' ', '_')}.log"
        names[pool.submit(run_job, job, log)] = (job, log)
    with tqdm(total=len(stage.jobs), initial=len(stage.jobs) - len(todo), desc=title, unit="job", leave=False) as bar:
        for future in concurrent.futures.as_completed(names):
            job, log = names[future]
            problem = future.result()
            if problem is not None:
                for other in names:
                    other.cancel()
                tail = "\n".join(log.read_text().splitlines()[-15:])
                raise SystemExit(f"quickstart: {stage.name}, {job.name}: {problem}\n{tail}\n(the whole log: {log})")
            commands.add(job)
            bar.set_postfix_str(job.name)
            bar.update()
    skipped = f", {len(stage.jobs) - len(todo)} done before" if len(todo) < len(stage.jobs) else ""
    seconds = time.monotonic() - started
    print(f"{title}: {len(todo)} jobs in {seconds:.0f} s{skipped} -> {stage.wrote}", flush=True)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from univ import cli  # here and below: at the top the pool's processes would load NumPy before start_worker

    parser = cli.Parser(description=__doc__, epilog="Exit codes: 0 done, 1 a job failed, 2 wrong use.")
    text = "where data/, results/, runs/, figs/ go; default: here, or smoke/ (also OUT=)"
    parser.add_argument("--out", type=cli.output_dir, default=os.environ.get("OUT") or None, help=text)
    parser.add_argument(
        "--smoke", action="store_true", help="a small form that shows that everything works (also SMOKE=1)"
    )
    parser.add_argument("--fresh", action="store_true", help="remove what earlier runs made of the digits, then run")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of training and of what is drawn")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=cli.some_processes, default=cores, help="processes, one per core unless given")
    args = parser.parse_args(argv)
    args.smoke = args.smoke or os.environ.get("SMOKE", "") not in ("", "0")
    args.out = args.out or Path("smoke" if args.smoke else ".")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.monotonic()
    plan = Plan(args.out, SMOKE if args.smoke else FULL, args.seed)
    if args.fresh:
        plan.remove_made()
    commands = Commands(plan.results / "digits/commands.json")
    cores = len(os.sched_getaffinity(0))
    pool = concurrent.futures.ProcessPoolExecutor(
        args.jobs,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=start_worker,
        initargs=(max(1, cores // args.jobs),),
    )
    stages = plan.stages()
    try:
        for number, stage in enumerate(stages, 1):
            run_stage(stage, pool, commands, args.out / "logs/quickstart", f"[{number}/{len(stages)}] {stage.name}")
    finally:
        if sys.exc_info()[0] is not None:  # leave no job running: each continues where it was at the next start
            processes = list((pool._processes or {}).values())
            for process in processes:
                process.terminate()
            for process in processes:  # a notebook's client catches the signal, and may then wait for one that is gone
                process.join(5)
                process.kill()
        pool.shutdown(cancel_futures=True)
    path = write_summary(plan)
    made = f"{path}, {path.with_name('report.html')} and {plan.figs}/"
    print(f"\n{path.read_text()}\n{made} after {time.monotonic() - started:.0f} s", flush=True)


def write_summary(plan: Plan) -> Path:
    """Write the one-page summary and return its path."""
    from univ import files
    from univ.show import summary

    scale = plan.scale
    radii = ", ".join(str(RADIUS[eps]) for eps in scale.eps)
    text = (
        f"{len(ARCHS)} architectures, eps {radii}, {scale.epochs} epochs; "
        f"{scale.inverted} images inverted in {scale.iterations} iterations; attack: {scale.attack_steps} L2 PGD steps."
    )
    path = plan.results / "digits/summary.md"
    files.write_text(path, summary.summarize(plan.results, "digits", plan.accuracy, scale=text))
    return path


if __name__ == "__main__":
    from univ import cli

    cli.run(main)
