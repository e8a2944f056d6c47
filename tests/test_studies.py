"""Studies: their files, the commands made of them, devices, and each of them run small: stopped, continued, changed."""

import contextlib
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import numpy as np
import pandas as pd
import pytest
import yaml
from image_files import encoded_image

from univ.errors import InputError
from univ.inversion.images import open_inverted
from univ.models import build_model, checkpoints
from univ.utils import folder2lmdb

study = commands.module_of("scripts/study.py")

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(path.stem for path in (ROOT / "scripts/studies").glob("*.yaml") if path.stem != "smoke")
WRAPPERS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if "study.sh" in path.read_text())
MODELS = ("torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small")  # small ones, made for 224 pixels
STEMS = [name.replace(":", "_") for name in MODELS]


def environment(**settings):
    """That of a shell in which this Python is `python`, with nothing set that studies read besides `settings`."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    fixed = {"PATH": os.environ["PATH"], "VENV": "none", "DEVICES": "cpu cpu", "OMP_WAIT_POLICY": "PASSIVE"}
    if shutil.which("snakemake") is None:
        fixed["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{fixed['PATH']}"
    return {**kept, **fixed, **{name: str(value) for name, value in settings.items()}}


def start(script, *words, **settings):
    command = ["bash", str(ROOT / "scripts" / script), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(**settings), start_new_session=True, **pipes)


def run(script, *words, **settings):
    process = start(script, *words, **settings)
    process.stdout_text, process.stderr_text = process.communicate(timeout=1800)
    return process


def succeed(script, *words, **settings):
    done = run(script, *words, **settings)
    assert done.returncode == 0, done.stdout_text + done.stderr_text
    return done


def planned(text):
    """The jobs that a dry run prints, as `stage name`, and their commands."""
    return dict(re.findall(r"^# (\S+ \S+):.*\n(.*)$", text, flags=re.MULTILINE))


def alive(session):
    """Processes of a session that `start` made."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds=120):
    for _ in range(seconds * 20):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def state(root, *folders):
    """When each file was written, of those that are results."""
    files = [path for name in folders for path in (root / name).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if not path.name.startswith(".")}


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"modles": ["vgg11"]}, "unknown key 'modles': did you mean models"),
        ({"eps": ["eps7"]}, r"eps\.0: input should be 'eps0', .*got 'eps7'"),
        ({"eps": []}, "eps: list should have at least 1 item"),
        ({"data": "mnist"}, "data: unknown 'mnist', choose from .*digits"),
        ({"inputs": ["both"]}, r"inputs\.0: input should be 'standard' or 'inverted', got 'both'"),
        ({"seeds": [-1]}, "seeds.0: input should be greater than or equal to 0, got -1"),
        ({"seeds": [1], "train": {"seed": 2}}, r"train: seed: seeds says it already, \[1\]: remove one"),
        ({"published": ["weights"]}, "published.0: input should be 'models' or 'inverted'"),
        ({"stages": ["drawing"]}, "no stage 'drawing': choose from download, data"),
        ({"train": {"epoch": 3}}, "train: 'epoch' is no flag of its script: did you mean .*epochs"),
        ({"train": {"epochs": "many"}}, "train: argument -?.*epochs: .*many"),
        ({"compare": {"rep": ["ckaa"]}}, "compare: argument .*rep: .*ckaa"),
    ],
)
def test_what_is_wrong_in_a_study_is_named(keys, message):
    config = {"name": "mine", "data": "digits", "eps": ["eps0"], **keys}
    with pytest.raises(InputError, match=message) as found:
        study.check(study.StudyFile.read(config))
    assert "\n" not in str(found.value)


def test_a_wrong_study_ends_before_anything_runs(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\ndata: digits\neps: [eps0]\nmodles: [vgg11]\n")
    for words in ([tmp_path / "mine.yaml"], [tmp_path / "no.yaml"], ["train"]):
        wrong = run("study.sh", *words, OUT=tmp_path / "out")
        assert wrong.returncode == 2 and len(wrong.stderr_text.splitlines()) == 1, wrong.stderr_text
        assert re.search("mine.yaml: unknown key 'modles'|no.yaml: |which study", wrong.stderr_text)
    assert not (tmp_path / "out").exists()


def parse(line):
    """What the script of a printed command makes of its words; SystemExit where it does not understand them."""
    for part in line.split(" && "):
        words = shlex.split(part)
        if words[0] == "python" and words[1] != "-c":
            yield commands.parse([words[1].removeprefix(f"{ROOT}/"), *words[2:]])
        else:
            assert words[0] in ("cp", "ln", "touch", "python"), part


@pytest.mark.parametrize("name", STUDIES)
def test_printed_commands_are_understood(name, tmp_path):
    words = [f"scripts/studies/{name}.yaml", "published=[]", "more_knn=[7]", "-n"]
    digits = {"digits": 12, "example": 4}  # how many are trained
    if name in digits:
        words += ["common={seed: 3, precision: bf16}", *(["seeds=[3]"] if name == "example" else [])]
    else:
        words += ["eps=[eps025,eps3]", "common={precision: bf16, workers: 2}", "models=[resnet18,torchvision:resnet18]"]
    if name == "imagenet50":  # is made of the LMDB files of ImageNet-100
        (tmp_path / "data/imagenet/imagenet100").mkdir(parents=True)
        for split in ("train", "val"):
            (tmp_path / f"data/imagenet/imagenet100/{split}.lmdb").touch()
    jobs = planned(succeed("study.sh", *words, OUT=tmp_path).stdout_text)
    parsed = {job: list(parse(line)) for job, line in jobs.items()}
    stages = {job.split()[0] for job in jobs}
    assert stages >= {"train", "evaluate", "invert", "compare", "func", "subgroups", "probes", "figures"}
    trained = {job: args[0] for job, args in parsed.items() if job.startswith("train ")}
    assert len(trained) == digits.get(name, 4)
    for job, args in trained.items():
        eps = {"0": 0, "025": 0.25}.get(text := job.rpartition("_eps")[2]) or float(text)
        assert args.adv == int(eps > 0) and args.epochs > 0 and args.precision == "bf16"
        if eps:
            assert args.eps == eps and args.lr == pytest.approx(eps * (1 / 2 if name == "cifar10" else 2 / 3))
        assert args.workers == 2 or name in digits
    assert {getattr(args, "seed", 3) for args in trained.values()} == {3} or name not in digits
    assert [args.knn for job, found in parsed.items() if job.endswith("_k7") for args in found if args] == [7] * (
        2 * len({job.rpartition("_eps")[2] for job in trained})
    )


def test_models_and_radii_are_the_papers_by_default(tmp_path):
    words = ["invert={uint8: true, batch: 8, num-imgs-to-invert: 10000}", "-n"]
    jobs = planned(succeed("invert_in100.sh", *words, OUT=tmp_path).stdout_text)
    made = [args for job, line in jobs.items() if job.startswith("invert") for args in parse(line)]
    assert sorted((*args.model, *args.eps) for args in made) == sorted(
        (arch, eps)
        for arch in ("resnet50", "wide_resnet50_2", "densenet161", "vgg16_bn")
        for eps in ("eps0", "eps025", "eps05", "eps1", "eps3")
    )
    assert all(args.uint8 and args.batch == 8 and args.num_imgs_to_invert == 10_000 for args in made)


def test_each_architecture_is_trained_with_each_seed(tmp_path):
    words = ["scripts/studies/example.yaml", "models=[vgg11,resnet10]", "seeds=[0,2]", "eps=[eps1]", "-n"]
    jobs = planned(succeed("study.sh", *words, OUT=tmp_path).stdout_text)
    names = ["vgg11", "vgg11@2", "resnet10", "resnet10@2"]
    trained = {job: parse(line) for job, line in jobs.items() if job.startswith("train ")}
    assert set(trained) == {f"train {name}_eps1" for name in names}
    for job, (args, *_) in trained.items():
        assert args.seed == (2 if "@2" in job else 0) and args.model == job.split()[1].partition("@")[0].split("_")[0]
    (compared,) = parse(jobs["compare eps1_standard"])
    assert compared.model_names == names


def test_published_files_count_as_made(tmp_path):
    words = ["scripts/studies/imagenet100.yaml", "models=[vgg16_bn,timm:resnet18]", "eps=[eps3]", "-n"]
    jobs = planned(succeed("study.sh", *words, OUT=tmp_path).stdout_text)
    (args,) = parse(jobs["download imagenet100"])
    assert args.model_names == ["vgg16_bn"] and args.eps == ["eps3"] and args.what == ["models", "inverted"]
    own = planned(succeed("study.sh", *words, "published=[models]", OUT=tmp_path).stdout_text)
    assert {job for job in own if job.startswith("invert")} == {"invert vgg16_bn_eps3", "invert timm_resnet18_eps3"}
    assert {job for job in own if job.startswith("train")} == {"train timm_resnet18_eps3"}  # nobody publishes those
    for name in ("cnns/imagenet100/eps3/vgg16_bn.ckpt", "imagenet100/inverted/vgg16_bn_eps3.npy"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    for name in ("train", "val"):  # made anew where they are missing, and then what is not published, too
        (tmp_path / f"data/imagenet/imagenet100/{name}.lmdb").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/imagenet/imagenet100/{name}.lmdb").touch()
    (tmp_path / "data/imagenet100/train.lmdb").touch()
    for name in ("cnns/imagenet100/eps3/timm_resnet18.ckpt", "imagenet100/inverted/timm_resnet18_eps3.pt"):
        (tmp_path / "data" / name).touch()
    jobs = planned(succeed("study.sh", *words, OUT=tmp_path).stdout_text)
    assert not any(job.startswith(("download", "train", "evaluate", "invert")) for job in jobs) and jobs


@pytest.mark.parametrize("script", WRAPPERS)
def test_help_begins_with_a_command(script):
    shown = run(script, "--help")
    assert shown.returncode == 0 and re.search(rf"^  .*bash scripts/{script}", shown.stdout_text, re.MULTILINE)


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted((ROOT / "scripts").glob("*.sh"))
    found = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


# --- devices and processes ------------------------------------------------------------------------------------------


def job(lines, log, devices="0 1", **settings):
    """A job of a study as Snakemake starts it."""
    text = f"set -euo pipefail; source {ROOT}/scripts/job.sh {log}; {lines}"
    settings = environment(UNIV_DEVICES=devices, UNIV_STUDY="1", **settings)
    return subprocess.Popen(["bash", "-c", text], env=settings, start_new_session=True)


def test_two_jobs_are_never_on_one_device(tmp_path):
    step = 'echo "+ $CUDA_VISIBLE_DEVICES" >>trace; sleep 0.2; echo "- $CUDA_VISIBLE_DEVICES" >>trace'
    jobs = [job(f"cd {tmp_path}; {step}", tmp_path / f"{i}.log", TMPDIR=tmp_path) for i in range(8)]
    assert [process.wait(timeout=60) for process in jobs] == [0] * 8
    busy, most = [], 0
    for sign, device in (line.split() for line in (tmp_path / "trace").read_text().splitlines()):
        assert (device in busy) == (sign == "-")
        busy.append(device) if sign == "+" else busy.remove(device)
        most = max(most, len(busy))
    assert most == 2 and busy == []


def test_places_and_devices_of_several_gpus(tmp_path):
    def seen(devices, count):
        lines = 'echo "$CUDA_VISIBLE_DEVICES" >&2; sleep 1'
        jobs = [job(lines, tmp_path / f"{i}.log", devices, TMPDIR=tmp_path) for i in range(count)]
        time.sleep(0.8)
        found = [(tmp_path / f"{i}.log").read_text() for i in range(count)]
        assert [process.wait(timeout=60) for process in jobs] == [0] * count
        return sorted(re.findall(r"^[\d,]*$", "".join(found), re.MULTILINE))

    assert seen("0,1 2,3", 2) == ["", "0,1", "2,3"]
    assert seen("0 0", 2) == ["", "0", "0"]
    assert seen("0,1 1,2", 2) == ["", "0,1"]  # the second waits, as the two share a device


def test_a_killed_job_frees_its_device(tmp_path):
    first = job("sleep 60", tmp_path / "first.log", "0", TMPDIR=tmp_path)
    wait_until(lambda: (log := tmp_path / "first.log").is_file() and "sleep 60" in log.read_text())
    second = job("echo here", tmp_path / "second.log", "0", TMPDIR=tmp_path)
    time.sleep(0.5)
    assert second.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -9 and second.wait(timeout=10) == 0


@pytest.fixture
def stand_in(tmp_path):
    """Put a command of this name first on the PATH; returns the settings for it."""

    def make(**scripts):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in scripts.items():
            (folder / name.replace("_", "-")).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (folder / name.replace("_", "-")).chmod(0o755)
        return {"PATH": f"{folder}{os.pathsep}{environment()['PATH']}", "OUT": tmp_path / "out"}

    return make


def test_devices_come_from_the_environment_or_nvidia_smi(stand_in):
    show = 'echo "<$UNIV_DEVICES>" "$@"'
    for smi, settings, found in [
        ("exit 9", {"DEVICES": "cpu 3 0,1"}, "cpu 3 0,1"),
        ("exit 9", {"DEVICES": "", "GPUS": "0,1 0,1"}, "0,1 0,1"),
        ("echo 0; echo 1", {"DEVICES": ""}, "0 1"),
        ("exit 9", {"DEVICES": ""}, "cpu"),
    ]:
        asked = stand_in(snakemake=show, nvidia_smi=smi, python="echo 2")  # which says how many cores there are
        shown = succeed("study.sh", "scripts/studies/digits.yaml", **asked, **settings).stdout_text
        assert f"<{found}>" in shown and f"gpu={len(found.split())} " in shown


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_jobs_and_their_children(stand_in, tmp_path, number, code):
    text = f'trap "sleep 0.3; touch {tmp_path}/cleaned; exit 1" TERM; sleep 60 & touch {tmp_path}/began; wait'
    running = start("study.sh", "scripts/studies/digits.yaml", **stand_in(snakemake=text, python="echo 2"))
    wait_until((tmp_path / "began").exists)
    second = run("study.sh", "scripts/studies/digits.yaml", **stand_in())
    assert second.returncode == 2 and "another study is running in" in second.stderr_text
    running.send_signal(number)
    assert "interrupted" in running.communicate(timeout=30)[1] and running.returncode == code
    assert (tmp_path / "cleaned").exists() and alive(running.pid) == []  # the job was asked, and waited for


# --- the quickstart -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke study, stopped in its training by SIGTERM and continued; with what it printed."""
    out = tmp_path_factory.mktemp("smoke")
    first = start("quickstart.sh", "--smoke", OUT=out)
    wait_until(lambda: list(out.glob("data/cnns/digits/*/*.pt")) or first.poll() is not None)
    first.send_signal(signal.SIGTERM)
    text = first.communicate(timeout=60)
    assert first.returncode == 143 and alive(first.pid) == [], text
    made = state(out, "data/cnns")
    assert 1 <= len(made) < 8
    second = succeed("quickstart.sh", "--smoke", OUT=out)
    assert {path: path.stat().st_mtime_ns for path in made} == made  # continued, not begun again
    return out, second


def mean_score(path):
    scores = pd.read_csv(path, index_col=0).to_numpy()
    return (scores.sum() - scores.trace()) / (scores.size - len(scores))


def test_the_smoke_study_shows_what_the_study_shows(smoke):
    out, second = smoke
    for stage in ("train", "evaluate", "invert", "compare", "func", "subgroups", "probes", "figures"):
        assert re.search(rf"^{stage}: done in", second.stderr_text, re.MULTILINE), second.stderr_text
    summary = (out / "results/digits/summary.md").read_text()
    assert summary in second.stdout_text
    for heading in ("Accuracy", "Similarity", "Inverted images", "probes"):
        assert heading in summary
    assert (out / "results/digits/report.html").stat().st_size > 0
    figures = {path.name for path in (out / "figs").glob("*.p*")}
    for name in ("similarity_inverted", "inverted_digits", "probe_agreement", "agreement_standard"):
        assert {f"{name}.png", f"{name}.pdf"} <= figures
    # the study's effect on inverted images is large at any scale and seed
    cka = [mean_score(out / f"results/cka/inverted/10000/digits/cka_{eps}_0.csv") for eps in ("eps0", "eps1")]
    assert cka[1] > cka[0]
    accuracy = {}
    for eps in ("eps0", "eps1"):
        rows = pd.concat(pd.read_csv(path) for path in (out / "results/accuracy/digits").glob(f"*_{eps}.csv"))
        accuracy[eps] = rows[rows.attack_eps > 0].acc.mean()
    assert accuracy["eps1"] > accuracy["eps0"] + 5  # percent, under the same attack


def test_a_second_run_does_nothing(smoke):
    out, _ = smoke
    before, began = state(out, "data", "results", "runs", "figs"), time.monotonic()
    again = succeed("quickstart.sh", "--smoke", OUT=out)
    assert time.monotonic() - began < 10
    assert again.stderr_text == "" and state(out, "data", "results", "runs", "figs") == before


DRAWN = {
    f"figures {name}" for name in ("data_effect", "rep_vs_pred_sim", "probe_agreement", "inv_img_example", "report")
}
COMPARED = {f"compare {eps}_{kind}" for eps in ("eps0", "eps1") for kind in ("standard", "inverted")}
DIGITS = ("vgg11", "resnet10", "densenet17", "resnext14_4x32d")


@pytest.mark.parametrize(
    "key, rerun",
    [
        ("compare={rep: [paper, mag, con], knn: 5}", COMPARED | DRAWN),
        (
            "func={func: [dis, norm, kappa, jsd], batch: 50}",
            {job.replace("compare", "func") for job in COMPARED} | DRAWN,
        ),
        (
            "probes={batch: 64, epochs: 9}",
            {f"probes {model}_eps1" for model in DIGITS} | {"probes agreement"} | DRAWN,
        ),
        (
            "invert={num-imgs-to-invert: 48, upper-bound-idx: 360, iterations: 41, step-size: 1, batch: 200}",
            {f"invert {model}_{eps}" for model in DIGITS for eps in ("eps0", "eps1")}
            | {f"compare represent_{eps}_i1" for eps in ("eps0", "eps1")}
            | {f"{stage} {eps}_inverted" for stage in ("compare", "func") for eps in ("eps0", "eps1")}
            | {"subgroups 1"}
            | DRAWN,
        ),
    ],
)
def test_a_changed_key_reruns_what_hangs_on_it(smoke, key, rerun):
    out, _ = smoke
    jobs = planned(succeed("quickstart.sh", "--smoke", key, "-n", OUT=out).stdout_text)
    assert set(jobs) == rerun


def test_fresh_removes_the_digits_and_nothing_else(tmp_path):
    mine = [
        "cka/standard/10000/digits/c.csv",
        "jaccard/inverted/cos_sim/digits/j.csv",
        "cache/reps__digits_eps0_i0/a.csv",
    ]
    others = ["cka/standard/10000/cifar10/c.csv", "probing/probe_agreement.csv", "indices/imagenet/i.csv"]
    for name in (*mine, *others):
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name).touch()
    succeed("quickstart.sh", "--smoke", "--fresh", "data", OUT=tmp_path)
    left = {str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.csv")}
    assert left == set(others)


@pytest.fixture
def two_digits(tmp_path):
    """A study of two published networks, not trained."""
    for number, arch in enumerate(DIGITS[:2]):
        path = tmp_path / f"data/cnns/digits/eps0/{arch}.pt"
        checkpoints.save_checkpoint(path, build_model(arch, "digits", seed=number), epoch=1)
    keys = {"name": "two", "data": "digits", "models": list(DIGITS[:2]), "eps": ["eps0"], "published": ["models"]}
    keys |= {"inputs": ["standard"], "compare": {"rep": ["cka"]}, "func": {"func": ["dis"]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(keys))
    return tmp_path


def test_a_failed_job_is_named_and_what_is_finished_stays(two_digits):
    damaged = two_digits / "data/cnns/digits/eps0/vgg11.pt"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no network")
    words = [two_digits / "two.yaml", "published=[]", "evaluate", "func", "--keep-going"]
    failed = run("study.sh", *words, OUT=two_digits)
    assert failed.returncode == 1
    assert re.search(
        r"evaluate vgg11_eps0: FAILED after \d+ s; the end of logs/.*/vgg11_eps0.log:\n(    .*\n)*.*vgg11\.pt",
        failed.stderr_text,
    ), failed.stderr_text
    tables = two_digits / "results/accuracy/digits"
    assert [path.name for path in tables.glob("*.csv")] == ["resnet10_eps0.csv"]
    damaged.write_bytes(whole)
    jobs = planned(succeed("study.sh", *words, "-n", OUT=two_digits).stdout_text)
    assert "evaluate resnet10_eps0" not in jobs and "evaluate vgg11_eps0" in jobs
    succeed("study.sh", *words, OUT=two_digits)
    assert (tables / "vgg11_eps0.csv").exists()
    assert (two_digits / "results/disagreement/standard/digits/dis_eps0_0.csv").exists()


@pytest.mark.slow
def test_a_study_killed_in_each_stage_comes_to_the_same_results(smoke, tmp_path):
    """kill -9 of all its processes at once, whenever a stage begins that was not yet hit."""
    left = {"train", "evaluate", "invert", "compare", "func", "subgroups", "probes", "figures"}
    while left:
        with (tmp_path / "said").open("w") as said:
            words = ["bash", ROOT / "scripts/quickstart.sh", "--smoke"]
            settings = environment(OUT=tmp_path / "out")
            running = subprocess.Popen(words, env=settings, stdout=said, stderr=said, start_new_session=True)
        begun = re.compile(rf"^({'|'.join(left)}): \d+ to run", re.MULTILINE)
        left.discard(wait_until(lambda said=said, begun=begun: begun.search(Path(said.name).read_text()), 300).group(1))
        time.sleep(1)
        for process in alive(running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        running.wait()
    succeed("quickstart.sh", "--smoke", OUT=tmp_path / "out")
    assert tables(tmp_path / "out/results") == tables(smoke[0] / "results")


def tables(folder):
    """The text of all CSVs, without times."""
    moment = re.compile(r"20\d\d-\d\d-\d\d[T_]\d\d[:-]\d\d[:-]\d\d")
    return {path.relative_to(folder): moment.sub("", path.read_text()) for path in folder.rglob("*.csv")}


# --- a cluster ------------------------------------------------------------------------------------------------------

SBATCH = """# Runs the script of --wrap in the background, and notes what it was asked and how it ended.
jobs="$STAND_IN_JOBS/$$"
echo "$*" >"$jobs.asked"
while [ $# -gt 0 ]; do
    case "$1" in --wrap=*) wrap="${1#--wrap=}";; --output) out="$2";; esac
    shift
done
echo RUNNING >"$jobs.state"
(
    if SLURM_JOB_ID=$$ bash -c "$wrap" >"${out//%j/$$}" 2>&1; then state=COMPLETED; else state=FAILED; fi
    echo $state >"$jobs.state"
) </dev/null >/dev/null 2>&1 &
echo $$"""
SACCT = """[ "$1" != -nu ] || exec echo me
for file in "$STAND_IN_JOBS"/*.state; do echo "$(basename "$file" .state)|$(cat "$file")"; done"""
SRUN = 'while [[ "$1" == -* ]]; do shift; done; exec "$@"'


@pytest.fixture
def cluster(stand_in, tmp_path):
    """Settings under which sbatch, sacct and srun are stand-ins that run jobs here."""
    (tmp_path / "jobs").mkdir()
    others = {"sacctmgr": "echo me", "sinfo": "echo main*", "scontrol": "", "scancel": ""}
    asked = stand_in(sbatch=SBATCH, sacct=SACCT, squeue=SACCT, srun=SRUN, **others)
    return {**asked, "STAND_IN_JOBS": tmp_path / "jobs", "OUT": tmp_path}


CLUSTER = ["--profile", ROOT / "scripts/profiles/slurm", "--latency-wait", 5]
CLUSTER += ["--slurm-init-seconds-before-status-checks", 1, "--seconds-between-status-checks", 1]


@pytest.mark.slow
def test_a_cluster_comes_to_the_same_results(smoke, cluster):
    studies = [ROOT / f"scripts/studies/{name}.yaml" for name in ("digits", "smoke")]
    done = succeed("study.sh", *studies, *CLUSTER, "--jobs", 2, **cluster)
    assert re.search(r"^figures: done", done.stderr_text, re.MULTILINE)
    asked = [path.read_text() for path in cluster["STAND_IN_JOBS"].glob("*.asked")]
    assert len(asked) > 50 and all("--mem" in text and "-t " in text for text in asked)
    assert tables(cluster["OUT"] / "results") == tables(smoke[0] / "results")


@pytest.mark.slow
def test_a_job_that_fails_on_a_cluster_is_named(two_digits, cluster):
    (two_digits / "data/cnns/digits/eps0/vgg11.pt").write_bytes(b"no network")
    words = [two_digits / "two.yaml", "published=[]", "evaluate", "--keep-going"]
    failed = run("study.sh", *words, *CLUSTER, **cluster)
    assert failed.returncode == 1 and "evaluate vgg11_eps0: FAILED" in failed.stderr_text, failed.stderr_text
    assert (two_digits / "results/accuracy/digits/resnet10_eps0.csv").exists()


# --- the paper's studies, small -------------------------------------------------------------------------------------

SMALL = [
    f"models=[{','.join(MODELS)}]",
    "common={workers: 0}",
    "train={epochs: 1, batch: 8}",
    "evaluate={batch: 8}",
    "invert={num-imgs-to-invert: 6, iterations: 2}",
    "compare={rep: [paper], knn: 3, num-inputs: 20, rtd-batch: 6, rtd-trials: 2}",
    "func={func: [dis, jsd]}",
    "more_knn=[5]",
    "probes={epochs: 2, num-probes: 2}",
]


def make_images(folder, per_class, classes=4):
    """`<folder>/<class>/<n>.JPEG`."""
    for label in range(classes):
        (folder / f"n{label:08d}").mkdir(parents=True)
        for number in range(per_class):
            content = encoded_image("rgb", seed=100 * label + number, size=(48, 40))
            (folder / f"n{label:08d}/{number}.JPEG").write_bytes(content)


def make_cifar10(folder):
    """Files in the format of CIFAR-10, 20 images each."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [number % 10 for number in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_the_imagenet100_scripts_on_published_models(tmp_path):
    for split, per_class in (("train", 6), ("val", 2)):
        make_images(tmp_path / "data/imagenet/imagenet100" / split, per_class)
    for number, stem in enumerate(STEMS):
        path = tmp_path / f"data/cnns/imagenet100/eps3/{stem}.ckpt"
        checkpoints.save_checkpoint(path, build_model(MODELS[number], "imagenet100", seed=number), epoch=1)
    small = [*SMALL, "eps=[eps3]", "more_knn=[]"]
    for script in ("invert_in100.sh", "compare_in100.sh", "comp_func_in100.sh"):
        succeed(script, *small, OUT=tmp_path)
    for stem in STEMS:
        images = open_inverted(tmp_path / f"data/imagenet100/inverted/{stem}_eps3.pt").pixels
        assert images.shape == (6, 3, 224, 224)
    for place in (
        "cka/{}/10000/imagenet100/cka_eps3_0.csv",
        "procrustes/{}/imagenet100/proc_norm_mean_eps3_0.csv",
        "rtd/{}/imagenet100/rtd_mean_eps3_0.csv",
        "jaccard/{}/cos_sim/imagenet100/jac_mean_eps3_0.csv",
        "disagreement/{}/imagenet100/dis_eps3_0.csv",
        "jsd/{}/imagenet100/jsd_eps3_0.csv",
    ):
        for kind in ("standard", "inverted"):
            scores = pd.read_csv(tmp_path / "results" / place.format(kind), index_col=0)
            assert set(scores.columns) == set(MODELS)
    before = state(tmp_path, "data", "results")
    assert succeed("comp_func_in100.sh", *small, OUT=tmp_path).stderr_text == ""
    assert state(tmp_path, "data", "results") == before


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["imagenet100", "imagenet", "imagenet50", "cifar10"])
def test_a_whole_study_from_training_to_figures_and_again(dataset, tmp_path):
    if dataset == "cifar10":
        make_cifar10(tmp_path / "data/cifar10")
    elif dataset == "imagenet50":
        for split, per_class in (("train", 2), ("val", 1)):
            make_images(tmp_path / "data/imagenet/imagenet100" / split, per_class, 100)
            folder2lmdb.main(["-f", str(tmp_path / "data/imagenet/imagenet100"), "-s", split])
    else:
        place = {"imagenet": "data/imagenet/ILSVRC"}.get(dataset, f"data/imagenet/{dataset}")
        for split, per_class in (("train", 6), ("val", 5)):
            make_images(tmp_path / place / split, per_class)
    words = [f"scripts/studies/{dataset}.yaml", *SMALL, "eps=[eps0,eps3]", "published=[]"]
    will_run = planned(succeed("study.sh", *words, "-n", OUT=tmp_path).stdout_text)
    said = succeed("study.sh", *words, OUT=tmp_path).stderr_text
    for stage in ("train", "evaluate", "invert", "compare", "func", "subgroups", "probes", "figures"):
        assert re.search(rf"^{stage}: done", said, re.MULTILINE), said
    ran = set(re.findall(r"^  \[\d+/\d+\] (\S+ \S+):", said, re.MULTILINE))
    assert ran == {job for job in will_run if not job.startswith(("same_images", "link"))}

    assert len(list(tmp_path.glob(f"data/cnns/{dataset}/*/*.*t"))) == 4
    accuracy = [pd.read_csv(path) for path in tmp_path.glob(f"results/accuracy/{dataset}/*.csv")]
    assert [len(table) for table in accuracy] == [2] * 4
    subgroups = pd.read_csv(tmp_path / f"results/subgroups/{dataset}/repsim_subgroups.csv")
    assert set(subgroups["eps"]) == {0, 3} and set(subgroups["pred_type"]) == {"agree", "disagree"}
    probes = pd.read_csv(tmp_path / f"results/probing/{dataset}/probe_agreement.csv")
    assert len(probes) == 6  # pairs of 4: two of each model at eps 3
    assert (tmp_path / "figs/similarity_standard.pdf").stat().st_size > 0
    assert (tmp_path / f"results/{dataset}/report.html").stat().st_size > 0

    before = state(tmp_path, "data", "results", "runs", "figs")
    again = succeed("study.sh", *words, OUT=tmp_path)
    assert again.stderr_text == "" and state(tmp_path, "data", "results", "runs", "figs") == before
