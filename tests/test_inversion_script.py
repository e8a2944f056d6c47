"""inversion.py on digits: files, index files, several processes, wrong input. (tests/faults: killed, disk full ...)"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_files import encoded_image
from PIL import Image

import inversion as script
from scripts.benchmarks.inversion import trained_statistics
from univ.data import open_images
from univ.data.indices import read_indices, write_indices
from univ.errors import InputError
from univ.models import build_model, checkpoints

ROOT = Path(__file__).resolve().parent.parent
ARCH = "resnext14_4x32d"


@pytest.fixture(scope="module")
def cnns(tmp_path_factory):
    """Checkpoints of networks with random weights, <folder>/<eps>/<arch>.pt."""
    folder = tmp_path_factory.mktemp("cnns")
    for eps in ("eps0", "eps1"):
        for arch in (ARCH, "vgg11"):
            model = trained_statistics("digits", arch, torch.device("cpu"))
            checkpoints.save_checkpoint(folder / eps / f"{arch}.pt", model, epoch=1)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of images whose labels nobody knows."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encoded_image("rgb", number, (300, 280)))
    return folder


@pytest.fixture
def words(cnns, tmp_path):
    """Words of a short run that writes into a folder of the test's own; n=0 draws nothing and reads the index files."""

    def words(*more, model=ARCH, eps="eps0", out=tmp_path / "inverted", n=6, iterations=2):
        text = f"-d digits -m {model} -e {eps} --model-dir {cnns / eps} -i {out} -n {n} -u {360 if n else 0}"
        text += f" --iterations {iterations} --step-size 1 --device cpu --quiet"
        return [*text.split(), *map(str, more)]

    return words


def load(path):
    return torch.load(path, weights_only=True)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is written ------------------------------------------------------------------------------------------------


def test_writes_images_report_sheet_and_settings(words, tmp_path):
    script.main(words("-b", 4))
    out = tmp_path / "inverted"
    names = {f"{ARCH}_eps0.{suffix}" for suffix in ("pt", "csv", "png", "json")}
    assert {path.name for path in out.iterdir()} == names | {"target_indices.csv", "seed_indices.csv"}

    images, labels = load(out / f"{ARCH}_eps0.pt"), open_images("digits").labels
    assert images.shape == (6, 3, 32, 32)
    targets, seeds = read_indices(out / "target_indices.csv"), read_indices(out / "seed_indices.csv")
    assert (labels[targets] != labels[seeds]).all()
    rows = rows_of(out / f"{ARCH}_eps0.csv")
    assert [int(row["target_index"]) for row in rows] == targets.tolist()
    assert [int(row["seed_label"]) for row in rows] == labels[seeds].tolist()
    assert all(float(row["final_distance"]) < float(row["start_distance"]) for row in rows)
    record = json.loads((out / f"{ARCH}_eps0.json").read_text())
    assert record["settings"]["iterations"] == 2 and record["commit"]
    assert record["distance"]["max"] == pytest.approx(max(float(row["final_distance"]) for row in rows), rel=1e-4)
    converged = [float(row["final_distance"]) < float(row["null_distance"]) for row in rows]
    assert [bool(int(row["converged"])) for row in rows] == converged
    assert record["null"]["images"] == 12 and record["null"]["converged"] == pytest.approx(sum(converged) / 6)
    with Image.open(out / f"{ARCH}_eps0.png") as sheet:
        assert sheet.height < sheet.width  # 6 columns of 3


def test_several_models_and_radii_share_the_index_files(cnns, tmp_path, monkeypatch):
    (tmp_path / "data/cnns").mkdir(parents=True)
    (tmp_path / "data/cnns/digits").symlink_to(cnns)
    monkeypatch.chdir(tmp_path)
    drawn = ["-n", "3", "-u", "50", "--iterations", "1", "--quiet", "--device", "cpu"]
    script.main(["-d", "digits", "-m", ARCH, "vgg11", "-e", "eps0", "eps1", *drawn])
    out = tmp_path / "data/digits/inverted"  # the defaults of spec and data/README.md
    assert sorted(path.name for path in out.glob("*.pt")) == sorted(
        f"{arch}_{eps}.pt" for arch in (ARCH, "vgg11") for eps in ("eps0", "eps1")
    )
    indices = {tuple(row["target_index"] for row in rows_of(path)) for path in out.glob("*_eps?.csv")}
    assert len(indices) == 1


def test_index_files_are_read_and_must_pair_up(words, tmp_path):
    targets, seeds = torch.tensor([5, 300, 17]), torch.tensor([8, 8, 9])
    write_indices(tmp_path / "t.csv", targets)
    write_indices(tmp_path / "s.csv", seeds)
    named = words("-t", tmp_path / "t.csv", "-s", tmp_path / "s.csv", n=0)
    script.main(named)
    rows = rows_of(tmp_path / f"inverted/{ARCH}_eps0.csv")
    assert [int(row["target_index"]) for row in rows] == targets.tolist()
    assert [int(row["seed_index"]) for row in rows] == seeds.tolist()
    write_indices(tmp_path / "s.csv", seeds[:2])
    with pytest.raises(InputError, match=r"3 targets.*2 seeds"):
        script.main(named)


def test_a_number_alone_draws_once_and_then_reads(words, tmp_path):
    script.main(words("-n", 5, n=0))  # the last -n counts; no -u: from all images
    drawn = (tmp_path / "inverted/target_indices.csv").read_text()
    script.main(words("-n", 4, eps="eps1", n=0))
    assert (tmp_path / "inverted/target_indices.csv").read_text() == drawn
    assert len(rows_of(tmp_path / f"inverted/{ARCH}_eps1.csv")) == 5


def test_without_index_files_every_test_image_is_a_target(words, tmp_path):
    script.main(words(n=0, iterations=1))
    rows = rows_of(tmp_path / f"inverted/{ARCH}_eps0.csv")
    assert [int(row["target_index"]) for row in rows] == list(range(360))
    assert all(row["target_label"] != row["seed_label"] for row in rows)
    # a run started at the same moment finds only the first of the two files, and draws the same
    drawn = (tmp_path / "inverted/seed_indices.csv").read_text()
    (tmp_path / "inverted/seed_indices.csv").unlink()
    script.main(words(n=0, iterations=1, eps="eps1"))
    assert (tmp_path / "inverted/seed_indices.csv").read_text() == drawn
    assert len(rows_of(tmp_path / f"inverted/{ARCH}_eps1.csv")) == 360


def test_one_index_file_of_ones_own_is_not_replaced(words, tmp_path):
    (tmp_path / "inverted").mkdir()
    own = tmp_path / "inverted/target_indices.csv"
    own.write_text(",0\n0,3\n1,5\n")
    with pytest.raises(InputError, match="put the other index file beside it"):
        script.main(words("--overwrite", n=0, iterations=1))
    assert own.read_text() == ",0\n0,3\n1,5\n"


def test_eight_bit_images_are_the_rounded_ones(words, tmp_path):
    script.main(words(out=tmp_path / "float"))
    script.main(words("--uint8", out=tmp_path / "uint8"))
    exact, stored = (load(tmp_path / form / f"{ARCH}_eps0.pt") for form in ("float", "uint8"))
    assert stored.dtype == torch.uint8
    assert torch.equal(stored, (exact * 255).round().to(torch.uint8))


def test_noise_starts_are_the_same_in_any_batch(words, tmp_path):
    script.main(words("--init", "noise", "-b", 6, out=tmp_path / "a"))
    script.main(words("--init", "noise", "-b", 4, out=tmp_path / "b"))
    script.main(words(out=tmp_path / "seeds"))
    a, b, seeds = (load(tmp_path / folder / f"{ARCH}_eps0.pt") for folder in ("a", "b", "seeds"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert (a - seeds).abs().mean() > 0.2


def test_an_existing_file_is_kept_unless_told_otherwise(words, tmp_path, capfd):
    output = tmp_path / f"inverted/{ARCH}_eps0.pt"
    script.main(words())
    before = output.read_bytes()
    script.main([word for word in words() if word != "--quiet"])
    assert "exists: nothing to do (--overwrite replaces it)" in capfd.readouterr().err
    with pytest.raises(InputError, match=r"iterations was 2, now 5.*--overwrite"):
        script.main(words(iterations=5))
    assert output.read_bytes() == before
    script.main(words("--overwrite", iterations=5))
    assert len(load(output)) == 6 and output.read_bytes() != before  # the original appended


def test_images_of_another_data_set_are_brought_to_the_models_size(cnns, pictures, tmp_path):
    model = build_model("torchvision:shufflenet_v2_x0_5", "imagenet", seed=0)
    checkpoints.save_checkpoint(tmp_path / "torchvision_shufflenet_v2_x0_5.ckpt", model, epoch=1)
    for name, values in (("t", [0, 3]), ("s", [1, 2])):
        write_indices(tmp_path / f"{name}.csv", torch.tensor(values))
    common = f"--data-path {pictures} -t {tmp_path}/t.csv -s {tmp_path}/s.csv --iterations 1 --quiet"
    common += f" -i {tmp_path} --workers 0 --device cpu"
    script.main(f"-m torchvision:shufflenet_v2_x0_5 --model-dir {tmp_path} {common}".split())
    assert load(tmp_path / "torchvision_shufflenet_v2_x0_5_eps0.pt").shape == (2, 3, 224, 224)
    assert {row["target_label"] for row in rows_of(tmp_path / "torchvision_shufflenet_v2_x0_5_eps0.csv")} == {"-1"}
    script.main(f"-m {ARCH} -p digits --model-dir {cnns / 'eps0'} {common}".split())
    assert load(tmp_path / f"{ARCH}_eps0.pt").shape == (2, 3, 32, 32)


def test_two_processes_make_the_file_of_one(words, tmp_path):
    script.main(words("-b", 2, out=tmp_path / "one", n=10))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = [ROOT / "inversion.py", *words("-b", 2, out=tmp_path / "two", n=10)]
    subprocess.run([*run, *more], check=True, timeout=120)
    one, two = (load(tmp_path / folder / f"{ARCH}_eps0.pt") for folder in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)
    assert not list((tmp_path / "two").glob("*.parts"))


# --- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("-m vgg19", InputError, "vgg19"),
        ("-n 400 -u 360", InputError, "-n"),
        ("-n 5 -u 1000", InputError, "-u"),
        ("-t absent.csv -s absent.csv -n 0", FileNotFoundError, "absent.csv"),
        ("-e eps0 eps1", SystemExit, "--model-dir is the folder of one radius"),
        ("-e eps7", SystemExit, "eps7"),
        ("--model-dir nowhere", SystemExit, "argument --model-dir: there is no folder nowhere"),
        ("--data-path nowhere", SystemExit, "argument --data-path: there is no file or folder nowhere"),
        ("--iterations 0", SystemExit, "--iterations"),
        ("--step-size -1", SystemExit, "--step-size"),
        ("-d mnist", SystemExit, "mnist"),
    ],
)
def test_wrong_input_is_named(words, more, error, message, capsys):
    with pytest.raises(error) as stopped:
        script.main(words(*more.split()))
    assert message in (capsys.readouterr().err if error is SystemExit else str(stopped.value))
    assert error is not SystemExit or stopped.value.code == 2


def test_other_indices_are_not_overwritten_unasked(words, tmp_path):
    script.main(words())
    with pytest.raises(InputError, match="holds other indices"):
        script.main(words(eps="eps1", n=7))
    assert len(read_indices(tmp_path / "inverted/target_indices.csv")) == 6


def test_where_nothing_says_which_images_the_flags_are_named(cnns, pictures, tmp_path):
    text = f"-d imagenet --data-path {pictures} -i {tmp_path} -m {ARCH} -p digits --model-dir {cnns / 'eps0'}"
    with pytest.raises(InputError, match=r"-s, -t.*-n"):
        script.main(text.split())
