"""The shell pipelines: their queue, the commands they print, and each of them run on a miniature data set."""

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
from image_files import encoded_image

from univ.inversion.images import open_inverted
from univ.models import build_model, checkpoints
from univ.reps.files import open_reps
from univ.utils import folder2lmdb

ROOT = Path(__file__).resolve().parent.parent
PIPELINES = sorted(path.name for path in (ROOT / "scripts").glob("*_*.sh") if "stages.sh" in path.read_text())
MODELS = ("torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small")  # small ones, made for 224 pixels
IN100 = ("resnet50", "wide_resnet50_2", "densenet161", "vgg16_bn")


def environment(**settings):
    """That of a shell in which this Python is `python`, with nothing set that pipelines read besides `settings`."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fixed = {"PATH": path, "VENV": "none", "DEVICES": "cpu cpu", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**kept, **fixed, **{name: str(value) for name, value in settings.items()}}


def run(script, *words, **settings):
    command = ["bash", ROOT / "scripts" / script, *words]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=1800)


# --- the queue ------------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(tmp_path):
    """Run a pipeline with these lines of bash; `wait=False` returns the running process."""

    def queue(lines, *words, wait=True, **settings):
        script = tmp_path / "mini.sh"
        script.write_text(f'set -euo pipefail\nsource {ROOT}/scripts/lib.sh\nstart_pipeline "$@"\n{lines}\n')
        command = ["bash", script, *words]
        settings = environment(**{"LOGS": tmp_path / "logs", "DEVICES": "0 1", **settings})
        if wait:
            return subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60)
        return subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True)

    return queue


def test_one_job_per_device_at_a_time(queue, tmp_path):
    step = """bash -c 'echo "+ $CUDA_VISIBLE_DEVICES" >> trace; sleep 0.3; echo "- $CUDA_VISIBLE_DEVICES" >> trace'"""
    done = queue("\n".join(f"add_job 'job {i}' {step}" for i in range(5)) + "\nrun_jobs 'some work'")
    assert done.returncode == 0 and "[5/5]" in done.stdout, done.stdout + done.stderr
    busy, most = [], 0
    for sign, device in (line.split() for line in (tmp_path / "trace").read_text().splitlines()):
        assert (device in busy) == (sign == "-")  # never two on one device
        busy.append(device) if sign == "+" else busy.remove(device)
        most = max(most, len(busy))
    assert most == 2 and busy == []
    assert {path.name for path in (tmp_path / "logs/mini/some_work").iterdir()} == {f"job_{i}.log" for i in range(5)}


def test_a_failed_job_ends_the_pipeline(queue, tmp_path):
    jobs = """
    add_job good bash -c 'sleep 0.5; touch finished'
    add_job "bad one" bash -c 'echo some output; echo the reason >&2; exit 3'
    add_job later touch later
    run_jobs first
    touch next_stage
    """
    done = queue(jobs)
    assert done.returncode == 1
    assert re.search(r"bad one: FAILED.*exit code 3.*first/bad_one\.log(.*\n)*.*some output\n.*the reason", done.stderr)
    assert "first stopped: 1 of 3 jobs failed: bad one" in done.stderr
    assert (tmp_path / "finished").exists()  # what ran may end
    assert not (tmp_path / "later").exists() and not (tmp_path / "next_stage").exists()

    again = queue(jobs, KEEP_GOING=1)
    assert again.returncode == 1 and (tmp_path / "later").exists() and not (tmp_path / "next_stage").exists()


def test_done_jobs_are_skipped_and_a_missing_output_is_a_failure(queue, tmp_path):
    jobs = """
    add_job -o "a file" one bash -c 'echo x >> "a file"'
    add_job -o drawn -i inputs two bash -c 'echo x >> drawn'
    run_jobs make
    """
    (tmp_path / "inputs").mkdir()
    for count, changed in ((1, False), (1, False), (2, True)):
        if changed:
            os.utime(tmp_path / "drawn", (1, 1))
            (tmp_path / "inputs/new").write_text("")
        assert queue(jobs).returncode == 0
        assert (tmp_path / "a file").read_text() == "x\n" and (tmp_path / "drawn").read_text() == "x\n" * count
    assert "done already" in queue("add_job -o drawn name false\nrun_jobs make").stdout

    silent = queue("add_job -o nowhere name true\nrun_jobs make")
    assert silent.returncode == 1 and "without writing nowhere" in silent.stderr


def test_a_dry_run_prints_commands_that_do_the_same(queue, tmp_path):
    jobs = """
    add_job one touch "with 'quotes' and $HOME" "&&" touch '*'
    add_job -o there two touch there
    run_jobs first
    add_job three touch three
    run_jobs second
    """
    (tmp_path / "there").write_text("")
    lines = queue(jobs, DRY_RUN=1).stdout.splitlines()
    assert len(lines) == 3 and lines[1].startswith("# second") and lines[2] == "touch three"
    assert not (tmp_path / "three").exists() and not (tmp_path / "logs").exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    home = Path.home().name  # slashes cannot be part of a file's name
    subprocess.run(["bash", "-c", lines[0].replace(str(Path.home()), home)], cwd=copy, check=True)
    assert {path.name for path in copy.iterdir()} == {f"with 'quotes' and {home}", "*"}


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_jobs_and_their_children(queue, tmp_path, number, code):
    job = 'trap "sleep 0.3; touch cleaned; exit 1" TERM; sleep 60 & echo $! > child; echo $$ > parent; wait'
    pipeline = queue(f"add_job long bash -c '{job}'\nrun_jobs work", wait=False)
    for _ in range(200):
        if (tmp_path / "parent").exists():
            break
        time.sleep(0.05)
    pipeline.send_signal(number)
    output = pipeline.communicate(timeout=30)[0]
    assert pipeline.returncode == code and "interrupted" in output
    assert (tmp_path / "cleaned").exists()  # the job was asked, and waited for
    for name in ("child", "parent"):
        status = Path(f"/proc/{(tmp_path / name).read_text().strip()}/status")
        assert not status.exists() or "zombie" in status.read_text()


def test_devices_come_from_the_environment_or_nvidia_smi(queue, tmp_path):
    show = """printf '<%s>' "${devices[@]}" """
    assert queue(show, DEVICES="cpu cuda:3 0,1").stdout == "<><3><0,1>"
    assert queue(show, DEVICES="", GPUS="0 0").stdout == "<0><0>"
    assert queue(show, DEVICES="", CUDA_VISIBLE_DEVICES="4,7").stdout == "<4><7>"
    assert queue(show, DEVICES="", CUDA_VISIBLE_DEVICES="").stdout == "<>"
    fake = tmp_path / "bin/nvidia-smi"
    fake.parent.mkdir()
    path = f"{fake.parent}{os.pathsep}{environment()['PATH']}"
    for text, found in (("echo 0; echo 1", "<0><1>"), ("echo no driver >&2; exit 9", "<>")):
        fake.write_text(f"#!/bin/sh\n{text}\n")
        fake.chmod(0o755)
        assert queue(show, DEVICES="", PATH=path).stdout == found


# --- what the pipelines print ---------------------------------------------------------------------------------------


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted((ROOT / "scripts").glob("*.sh"))
    found = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", [*PIPELINES, "slurm_example.sh"])
def test_help_begins_with_a_command(script):
    shown = run(script, "--help")
    assert shown.returncode == 0 and re.search(rf"^  .*bash scripts/{script}", shown.stdout, re.MULTILINE)
    assert script == "slurm_example.sh" or ("NUM_IMAGES" in shown.stdout and "DRY_RUN" in shown.stdout)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"EPS": "eps7"}, "EPS: unknown radius 'eps7'"),
        ({"DATASET": "mnist"}, "DATASET=mnist: choose from imagenet"),
        ({"INPUTS": "both"}, "unknown 'both', choose from standard"),
        ({"STAGES": "compare drawing"}, "no stage 'drawing': choose from download data"),
        ({"PUBLISHED": "weights"}, "PUBLISHED: unknown 'weights'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    wrong = run("reproduce_imagenet100.sh", DRY_RUN=1, MODELS="vgg16_bn", **settings)
    assert wrong.returncode == 2 and message in wrong.stderr and wrong.stdout == ""


def parse(words):
    """What a script makes of its words; SystemExit where it does not understand them."""
    if words[0] in ("cp", "mv", "ln", "mkdir", "touch") or words[1] == "-c":
        return None
    assert words[0] == "python"
    return commands.parse(words[1:])


@pytest.mark.parametrize("script", PIPELINES)
def test_printed_commands_are_understood(script, tmp_path):
    settings = {"PRECISION": "bf16", "WORKERS": 2, "LABELS": "labels.csv", "NUM_INPUTS": 50}
    every = "download data train evaluate invert compare func subgroups probes figures"
    models = "resnet18 torchvision:resnet18"
    dry = run(script, DRY_RUN=1, DATA=tmp_path, STAGES=every, MODELS=models, EPS="eps025 eps3", **settings)
    assert dry.returncode == 0, dry.stderr
    parsed = []
    for line in dry.stdout.splitlines():
        words = [] if line.startswith("#") else shlex.split(line)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            parsed.append((words[:end], parse(words[:end])))
            words = words[end + 1 :]
    assert parsed
    trained = [args for words, args in parsed if "--resume" in words]
    if "reproduce" in script:
        assert [(args.adv, args.eps) for args in trained] == [(1, 0.25)] * 2 + [(1, 3)] * 2
        assert all(args.lr == pytest.approx(args.eps * (1 / 2 if "cifar" in script else 2 / 3)) for args in trained)
    else:
        assert len(parsed) == {"invert": 4, "extract": 4}.get(script.split("_")[0], len(parsed)) and not trained


def test_models_and_radii_are_the_studys_by_default():
    lines = run("invert_in100.sh", DRY_RUN=1, FLAGS="--uint8 -b 8").stdout.splitlines()
    jobs = [parse(shlex.split(line)) for line in lines]
    expected = [
        ([arch], [eps], Path("data/cnns/imagenet100") / eps, 10_000, True, 8)
        for eps in ("eps0", "eps025", "eps05", "eps1", "eps3")
        for arch in IN100
    ]
    made = [(job.model, job.eps, job.model_dir, job.num_imgs_to_invert, job.uint8, job.batch) for job in jobs]
    assert made == expected


def test_published_data_are_not_made_again():
    first = run("reproduce_imagenet100.sh", DRY_RUN=1, MODELS="vgg16_bn", DATA="nowhere").stdout
    assert "download_data.py" in first and "imagenet_training.py" not in first and "inversion.py" not in first
    own = run("reproduce_imagenet100.sh", DRY_RUN=1, MODELS="vgg16_bn", DATA="nowhere", PUBLISHED="models").stdout
    assert "inversion.py" in own and "imagenet_training.py" not in own
    none = run("reproduce_imagenet100.sh", DRY_RUN=1, MODELS="vgg16_bn", PUBLISHED="none", SKIP="data probes").stdout
    assert "imagenet_training.py" in none and "folder2lmdb" not in none and "probe" not in none


def test_slurm_arrays_hold_the_commands_in_order(tmp_path):
    """A stand-in for sbatch runs every task of an array at once, and notes what it was asked."""
    fake = tmp_path / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text(
        f"""#!/bin/bash
        echo "$*" >> {tmp_path}/asked
        for word in "$@"; do [[ $word != --array=1-* ]] || count=${{word#--array=1-}}; done
        for ((i = 1; i <= ${{count%\\%*}}; i++)); do SLURM_ARRAY_TASK_ID=$i bash "${{@: -2}}" >&2 || exit 1; done
        wc -l < {tmp_path}/asked
        """
    )
    fake.chmod(0o755)
    pipeline = tmp_path / "three.sh"
    trace = tmp_path / "trace"
    pipeline.write_text(
        f"""source {ROOT}/scripts/lib.sh
        start_pipeline
        for i in 1 2; do add_job $i bash -c "echo $i >> '{trace}'"; done
        run_jobs first
        add_job last bash -c "echo last >> '{trace}'"
        run_jobs second
        """
    )
    path = f"{fake.parent}{os.pathsep}{environment()['PATH']}"
    done = run("slurm_example.sh", pipeline, PATH=path, LOGS=tmp_path / "logs", MAX_TASKS=3, SBATCH_FLAGS="-p gpu")
    assert done.returncode == 0, done.stderr
    assert trace.read_text().split() == ["1", "2", "last"]
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert "--array=1-2%3" in first and "-p gpu" in first and "--dependency" not in first
    assert "--array=1-1%3" in second and "--dependency=afterok:1" in second


# --- for real, on a miniature data set ------------------------------------------------------------------------------


def settings_of(root, **more):
    """Everything small: 24 images of 4 classes, 6 inverted in 2 iterations, 2 devices."""
    folders = {name: root / name.lower() for name in ("DATA", "RESULTS", "RUNS", "FIGS", "LOGS")}
    sizes = {"NUM_IMAGES": 6, "ITERATIONS": 2, "NUM_INPUTS": 20, "KNN": 3, "MORE_KNN": 5, "EPOCHS": 1}
    probes = {"PROBE_EPOCHS": 2, "NUM_PROBES": 2}
    rtd = {"COMPARE_FLAGS": "--rtd-batch 6 --rtd-trials 2"}
    return {**folders, **sizes, **probes, **rtd, "WORKERS": 0, "MODELS": " ".join(MODELS), **more}


def make_images(folder, per_class):
    """`<folder>/<class>/<n>.JPEG` of 4 classes."""
    for label in range(4):
        (folder / f"n{label:08d}").mkdir(parents=True)
        for number in range(per_class):
            content = encoded_image("rgb", seed=100 * label + number, size=(48, 40))
            (folder / f"n{label:08d}/{number}.JPEG").write_bytes(content)


def make_checkpoints(root, dataset, radii, models=MODELS):
    for number, (eps, arch) in enumerate((eps, arch) for eps in radii for arch in models):
        path = root / f"data/cnns/{dataset}/{eps}/{arch.replace(':', '_')}.ckpt"
        checkpoints.save_checkpoint(path, build_model(arch, dataset, seed=number), epoch=1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """ImageNet-100 in the real layout with two small networks of eps 3: what the published data look like."""
    root = tmp_path_factory.mktemp("study")
    for split, per_class in (("train", 6), ("val", 2)):
        make_images(root / "images" / split, per_class)
        folder2lmdb.main(["-f", str(root / "images"), "-s", split, "--out", str(root / "data/imagenet/imagenet100")])
    (root / "data/imagenet100").mkdir()
    shutil.copyfile(root / "data/imagenet/imagenet100/train.lmdb", root / "data/imagenet100/train.lmdb")
    make_checkpoints(root, "imagenet100", ["eps3"])
    return root


def state(root):
    """When each file was written, of those that are results."""
    places = [root / name for name in ("data", "results", "runs", "figs")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if not path.name.startswith(".lock")}


def check(done, *stages):
    """The pipeline went well through these stages."""
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in stages:
        assert re.search(rf"^{stage}: done", done.stdout, re.MULTILINE), done.stdout


def test_the_imagenet100_pipelines(study):
    settings = settings_of(study, EPS="eps3", MORE_KNN="")
    check(run("invert_in100.sh", **settings), "invert")
    check(run("compare_in100.sh", **settings), "compare")
    check(run("comp_func_in100.sh", **settings), "func")
    one = {**settings, "DATASET": "imagenet100", "MODELS": MODELS[0]}
    check(run("extract_reps_for_probe_training.sh", **one), "represent for probes")

    for arch in MODELS:
        images = open_inverted(study / f"data/imagenet100/inverted/{arch.replace(':', '_')}_eps3.pt").pixels
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
            scores = pd.read_csv(study / "results" / place.format(kind), index_col=0)
            assert list(scores.columns) == list(scores.index) == list(MODELS)
    folder = study / f"results/cache/probes/imagenet100/{MODELS[0].replace(':', '_')}_eps3"
    assert (len(open_reps(folder / "reps.pt")), len(open_reps(folder / "val_reps.pt"))) == (24, 8)

    before = state(study)
    for script in ("invert_in100.sh", "compare_in100.sh"):
        check(run(script, **settings))
    assert state(study) == before


def test_a_pipeline_fails_with_its_script(study):
    settings = settings_of(study, EPS="eps3", MODELS="resnet18")
    failed = run("invert_in100.sh", **settings)
    assert failed.returncode == 1
    assert re.search(r"resnet18 eps3: FAILED.*exit code 2(.*\n)*.*error: no checkpoint resnet18\.ckpt", failed.stderr)


def make_cifar10(folder):
    """Files in the format of CIFAR-10, 20 images each."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [number % 10 for number in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["imagenet100", "imagenet", "imagenet50", "cifar10"])
def test_a_whole_study_from_training_to_figures_and_again(dataset, tmp_path):
    settings = settings_of(tmp_path, EPS="eps0 eps3", PUBLISHED="none", DATASET=dataset)
    settings |= {"TRAIN_FLAGS": "-b 8", "EVALUATE_FLAGS": "-b 8"}
    script = f"reproduce_{dataset.replace('50', '100')}.sh"
    if dataset == "cifar10":
        make_cifar10(tmp_path / "data/cifar10")
    elif dataset == "imagenet50":
        make_imagenet100_with_fifty(tmp_path / "data/imagenet/imagenet100")
    else:
        place = {"imagenet": "data/imagenet/ILSVRC"}.get(dataset, f"data/imagenet/{dataset}")
        for split, per_class in (("train", 6), ("val", 5)):
            make_images(tmp_path / place / split, per_class)
    stages = ("train", "evaluate", "invert", "compare", "further k", "func", "subgroups", "figures")
    check(run(script, **settings), *stages)

    assert len(list(tmp_path.glob(f"data/cnns/{dataset}/*/*"))) == 4
    accuracy = [pd.read_csv(path) for path in tmp_path.glob(f"results/accuracy/{dataset}/*.csv")]
    assert [len(table) for table in accuracy] == [2] * 4
    subgroups = pd.read_csv(tmp_path / f"results/subgroups/{dataset}/repsim_subgroups.csv")
    assert set(subgroups["eps"]) == {0, 3} and set(subgroups["pred_type"]) == {"agree", "disagree"}
    probes = pd.read_csv(tmp_path / f"results/probing/{dataset}/probe_agreement.csv")
    assert len(probes) == 6  # pairs of 4
    assert (tmp_path / "figs/similarity_standard.pdf").stat().st_size > 0
    assert (tmp_path / "results/report.html").stat().st_size > 0

    before = state(tmp_path)
    check(run(script, **settings))
    assert state(tmp_path) == before


def make_imagenet100_with_fifty(folder):
    """LMDB files of 100 classes with one image each, two in the training part."""
    for split, per_class in (("train", 2), ("val", 1)):
        for label in range(100):
            (folder / split / f"n{label:08d}").mkdir(parents=True)
            for number in range(per_class):
                content = encoded_image("rgb", seed=10 * label + number, size=(48, 40))
                (folder / split / f"n{label:08d}/{number}.JPEG").write_bytes(content)
        folder2lmdb.main(["-f", str(folder), "-s", split])


@pytest.mark.slow
def test_the_studys_four_architectures(study):
    make_checkpoints(study, "imagenet100", ["eps1"], IN100)
    settings = settings_of(study, EPS="eps1", MORE_KNN="", NUM_IMAGES=4, ITERATIONS=1, NUM_INPUTS=8)
    settings |= {"INVERTED": study / "data/imagenet100/four", "COMPARE_FLAGS": "--rtd-batch 4 --rtd-trials 1"}
    settings |= {"KNN": 1, "FUNCS": "dis"}
    del settings["MODELS"]
    for script in ("invert_in100.sh", "compare_in100.sh", "comp_func_in100.sh"):
        check(run(script, **settings))
    for kind in ("standard", "inverted"):
        scores = pd.read_csv(study / f"results/disagreement/{kind}/imagenet100/dis_eps1_0.csv", index_col=0)
        assert set(scores.columns) == set(IN100)
