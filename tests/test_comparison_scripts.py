"""rep.py, func.py and subgroup_sim.py on digits: files, numbers, orientation, reuse, errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from digits_study import ARCHS, N_INVERTED, flags, forward, own_images, write_study

import func
import rep
import subgroup_sim
from univ.errors import InputError
from univ.models import Source

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def here(study, tmp_path, monkeypatch):
    """Words every command needs; results go to a new folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return flags(study)


def read(path):
    return pd.read_csv(path, index_col=0)


def drawn():
    """The images that are compared, in their order."""
    return torch.tensor(pd.read_csv("results/indices/digits/indices_0.csv")["0"].tolist())


def linked(study, folder, suffixes, source=None):
    """A folder of links to each model's inverted images, or to those of `source` under each model's name."""
    folder.mkdir()
    for arch in ARCHS:
        for suffix in suffixes:
            path = study / f"data/digits/inverted/{source or arch}_eps1{suffix}"
            (folder / f"{arch}_eps1{suffix}").symlink_to(path)
    return ["--inverted-imgs-dir", str(folder)]


def test_rep_writes_the_published_files_with_scores_of_the_definition(study, here):
    rep.main([*here, "-r", "cka", "proc", "jacc", "mag", "con", "-k", "10"])
    pixels, _ = own_images()
    x, y = (forward(study, arch, pixels[drawn()])[0].double().numpy() for arch in ARCHS[:2])
    expected = {
        "cka/standard/10000/digits/cka_eps1_0.csv": oracles.cka(x, y),
        "procrustes/standard/digits/proc_norm_mean_eps1_0.csv": oracles.procrustes(x, y),
        "jaccard/standard/cos_sim/digits/jac_mean_eps1_0.csv": oracles.jaccard(x, y, k=10),
        "magnitude/standard/digits/mag_eps1_0.csv": None,
        "concentricity/standard/digits/con_eps1_0.csv": None,
        "indices/digits/indices_0.csv": None,
    }
    root = Path("results")
    assert {str(path.relative_to(root)) for path in root.rglob("*.csv")} == set(expected)
    for path, score in expected.items():
        assert score is None or read(root / path).loc["vgg11", "resnet10"] == pytest.approx(score, abs=1e-6)
    magnitude = read(root / "magnitude/standard/digits/mag_eps1_0.csv")
    assert list(magnitude.columns) == ARCHS and magnitude.index.tolist() == [0]
    assert magnitude["vgg11"].item() == pytest.approx(np.linalg.norm(x.mean(axis=0)), rel=1e-6)


def test_on_inverted_images_the_column_names_their_model(study, here):
    rep.main([*here, "-r", "cka", "-i", "1"])
    func.main([*here, "-f", "dis", "-i", "1"])
    cka = read("results/cka/inverted/10000/digits/cka_eps1_0.csv")
    dis = read("results/disagreement/inverted/digits/dis_eps1_0.csv")
    for source, other in (ARCHS[:2], ARCHS[1::-1]):
        pixels = torch.load(study / f"data/digits/inverted/{source}_eps1.pt", weights_only=True)
        (x, p), (y, q) = (forward(study, arch, pixels) for arch in (source, other))
        assert cka.loc[other, source] == pytest.approx(oracles.cka(x.double().numpy(), y.double().numpy()), abs=1e-6)
        assert dis.loc[other, source] == (p.argmax(1) != q.argmax(1)).double().mean().item()
    assert cka.loc["vgg11", "resnet10"] != cka.loc["resnet10", "vgg11"]


def test_func_records_the_accuracies_that_the_bounds_need(study, here):
    func.main([*here, "-f", "all"])
    made = json.loads(Path("results/disagreement/standard/digits/dis_eps1_0.json").read_text())
    pixels, labels = own_images()
    correct = forward(study, "vgg11", pixels[drawn()])[1].argmax(1) == labels[drawn()]
    assert made["num_classes"] == 10
    assert made["accuracy"]["vgg11"] == pytest.approx(correct.double().mean().item())
    func.main([*here, "-f", "dis", "-i", "1"])
    by_source = json.loads(Path("results/disagreement/inverted/digits/dis_eps1_0.json").read_text())["accuracy"]
    assert set(by_source) == set(by_source["vgg11"]) == set(ARCHS)


def test_a_result_is_reused_for_the_same_settings_only(here, monkeypatch):
    def run(*more):
        rep.main([*here, "-r", "jacc", "cka", *more])
        jacc, cka = (next(Path("results").rglob(name)) for name in ("jac_*.csv", "cka_*.csv"))
        return read(jacc), jacc.stat().st_mtime_ns, cka.stat().st_mtime_ns

    scores, *times = run("-k", "10")
    with monkeypatch.context() as patch:  # nothing is loaded when nothing is to be computed
        patch.setattr(Source, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        assert run("-k", "10")[1:] == tuple(times)
    others, _, time = run("-k", "20")
    assert not others.equals(scores)
    assert time == times[1]  # k is no setting of cka
    assert run("-k", "20", "--overwrite")[2] != time


def test_the_cache_spares_the_forward_passes(here, monkeypatch):
    rep.main([*here, "--cache-dir", "cache", "-i", "1", "--no-comparisons"])
    assert not list(Path("results").rglob("*.json"))
    monkeypatch.setattr(Source, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    func.main([*here, "--cache-dir", "cache", "-i", "1", "-f", "dis"])
    assert read("results/disagreement/inverted/digits/dis_eps1_0.csv").shape == (3, 3)


def test_baselines_hold_the_mean_and_the_single_scores(here):
    rep.main([*here, "-r", "cka", "mag", "-p", "3"])
    folder = Path("results/cka/standard/10000/digits")
    singles = read(folder / "cka_base_all_eps1_0.csv")
    cell = json.loads(singles.loc[0, "resnet10"])
    assert len(cell) == 3 and list(singles.columns) == ARCHS
    assert read(folder / "cka_base_eps1_0.csv").loc["vgg11", "resnet10"] == pytest.approx(np.mean(cell))
    assert abs(np.mean(cell)) < 0.05  # unbiased: about 0 under permutation
    assert not Path("results/magnitude").exists()


def test_intervals_and_null_tests_are_written_beside_the_matrix(here):
    folder = Path("results/disagreement/inverted/digits")

    def run(name, *more):
        func.main([*here, "-f", "dis", "-i", "1", *more])
        return pd.read_csv(folder / f"dis_{name}.csv", index_col=["model1", "model2"])

    wide = run("base_eps1_0_ci", "--ci", "-p", "19")
    assert list(wide.columns) == ["score", "low", "high"] and len(wide) == 6
    assert ((wide.low <= wide.score) & (wide.score <= wide.high)).all()
    assert pd.read_csv(folder / "dis_base_eps1_0_pvalue.csv").p_value.between(1 / 20, 1).all()
    assert len(pd.read_csv(folder / "dis_base_eps1_0_calibrated.csv")) == 6
    narrow = run("eps1_0_ci", "--ci", "0.8")
    observed = read(folder / "dis_eps1_0.csv")  # the column is the source, which the long tables name first
    assert all(row.score == observed.loc[other, source] for (source, other), row in narrow.iterrows())
    narrower = run("eps1_0_ci", "--ci", "0.5")  # another level is computed, not taken as done
    assert (narrower.high - narrower.low).sum() < (narrow.high - narrow.low).sum()
    assert ((narrow.high - narrow.low) <= (wide.high - wide.low)).all()


def test_measures_beyond_the_studys_list(here):
    rep.main([*here, "-r", "cka_biased", "mutual_knn", "linreg", "hard_match", "dcor", "imd", "rsa"])
    by_order = read(next(Path("results").rglob("rsa*_eps1_0.csv")))
    rep.main([*here, "-r", "rsa", "--rsa-dissimilarity", "euclidean", "--rsa-comparison", "kendall"])
    assert not read(next(Path("results").rglob("rsa*_eps1_0.csv"))).equals(by_order)
    func.main([*here, "-f", "more"])
    written = {path.name for path in Path("results").rglob("*_eps1_0.csv")}
    assert {"error_consistency_eps1_0.csv", "capa_eps1_0.csv"} <= written and len(written) == 9


def test_stir_compares_inverted_images_with_their_targets(study, here, tmp_path):
    images = linked(study, tmp_path / "inverted", [".pt", ".csv"], source="vgg11")  # one set of targets
    rep.main([*here, "-r", "stir", "-i", "1", *images])
    scores = read("results/stir/inverted/digits/stir_eps1_0.csv")
    chosen = pd.read_csv(tmp_path / "inverted/vgg11_eps1.csv")["target_index"].tolist()
    pixels = own_images()[0][chosen], torch.load(tmp_path / "inverted/vgg11_eps1.pt", weights_only=True)
    x, y = (forward(study, "resnet10", images)[0].double().numpy() for images in pixels)
    assert scores.loc["resnet10", "vgg11"] == pytest.approx(oracles.cka(x, y), abs=1e-6)


def test_pooled_and_adversarial_images_have_names_of_their_own(here):
    pooled = ["-i", "1", "-s", "1", "--num-inputs", "30"]
    rep.main([*here, "-r", "cka", *pooled])
    func.main([*here, "-f", "dis", *pooled])
    func.main([*here, "-f", "dis", "-v", "1"])
    scores = read("results/cka/inverted/10000/digits/cka_sample_eps1_0.csv")
    assert scores.equals(scores.T), "one set for all models"
    for name in ("sample", "adv"):
        assert Path(f"results/disagreement/inverted/digits/dis_{name}_eps1_0.csv").exists()


def test_a_measure_that_cannot_be_computed_is_named_and_the_others_go_on(study, here, tmp_path, capsys):
    unlabelled = linked(study, tmp_path / "unlabelled", [".pt"])
    with pytest.raises(SystemExit) as left:
        func.main([*here, "-f", "norm", "dis", "-i", "1", *unlabelled])
    assert left.value.code == 1
    assert "norm was not computed" in capsys.readouterr().err
    assert Path("results/disagreement/inverted/digits/dis_eps1_0.csv").exists()
    assert not Path("results/norm_dis").exists()


def test_arguments_are_written_once(here):
    words = [*here, "-f", "dis", "--config-file-path", "run/config.json"]
    func.main(words)
    first = Path("run/config.json").read_text()
    assert json.loads(first)["eps"] == "eps1"
    func.main([*words, "-e", "2"])
    assert Path("run/config.json").read_text() == first


SUBGROUPS = ["--cache-dir", "cache", "--dataset", "digits", "--eps", "eps1", "--quiet"]
SUBGROUP_TABLE = Path("results/subgroups/digits/repsim_subgroups.csv")


def test_subgroups_from_the_cache(study, here):
    rep.main([*here, "--cache-dir", "cache", "--no-comparisons"])
    words = [*SUBGROUPS, "--measures", "cka", "proc", "--no-size-matched"]
    subgroup_sim.main(words)
    table = pd.read_csv(SUBGROUP_TABLE)
    assert len(table) == 2 * 3 * 2  # measures, pairs, groups
    pixels, pair = own_images()[0][drawn()], ["resnet10", "resnext14_4x32d"]
    (x, p), (y, q) = (forward(study, arch, pixels) for arch in pair)
    agree = p.argmax(1) == q.argmax(1)
    rows = table[(table.metric == "cka") & table.model1.isin(pair) & table.model2.isin(pair)].set_index("pred_type")
    for group, chosen in {"agree": agree, "disagree": ~agree}.items():
        assert rows.loc[group, "n"] == chosen.sum()
        if chosen.sum() >= 4:
            score = oracles.cka(x[chosen].double().numpy(), y[chosen].double().numpy())
            assert rows.loc[group, "score"] == pytest.approx(score, abs=1e-6)
        else:
            assert np.isnan(rows.loc[group, "score"])
    before = SUBGROUP_TABLE.stat().st_mtime_ns
    subgroup_sim.main(words)
    assert SUBGROUP_TABLE.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"--models alexnet: not in the cache of eps1, which holds"):
        subgroup_sim.main([*words, "--models", "alexnet"])


def test_subgroups_on_inverted_images_compare_each_source_with_the_others(here):
    rep.main([*here, "-i", "1", "--cache-dir", "cache", "--no-comparisons"])
    subgroup_sim.main([*SUBGROUPS, "--inv", "1", "--measures", "proc"])
    table = pd.read_csv(SUBGROUP_TABLE)
    assert len(table) == 6 * 2 and not (table.model1 == table.model2).any()
    pairs = table.groupby(["model1", "model2"])
    assert (pairs["n_group"].sum() == N_INVERTED).all() and (table["n"] == pairs["n_group"].transform("min")).all()


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (rep, ["-d", "cifar100"], "cifar100"),
        (rep, ["-d", "snli"], "snli"),
        (rep, ["-r", "ckaa"], "ckaa"),
        (rep, ["-k", "360", "-r", "jacc"], "--knn 360"),
        (rep, ["--num-inputs", "361"], "--num-inputs 361"),
        (rep, ["--model-names", "alexnet"], "alexnet"),
        (rep, ["-o", "eps05"], "--model-dir"),
        (rep, ["--model-dir", "nowhere"], "nowhere"),
        (rep, ["-i", "1", "--inverted-imgs-dir", "nowhere"], "nowhere"),
        (rep, ["-v", "1"], "--inverted-imgs-dir"),
        (rep, ["-s", "1"], "-i 1"),
        (rep, ["--no-comparisons"], "--cache-dir"),
        (rep, ["-r", "shape", "cka"], "shape"),
        (rep, ["-r", "stir"], "-i 1"),
        (rep, ["--ci", "95"], "between 0 and 1"),
        (func, ["-a", "0"], "above 0"),
        (func, ["-e", "first"], "expected a number"),
        (subgroup_sim, ["--cache-dir", "nowhere"], "nowhere"),
        (subgroup_sim, ["--cache-dir", ".", "--dataset", "digits"], "--no-comparisons"),
    ],
)
def test_wrong_input_is_answered_in_one_line(script, words, message, here, capsys):
    common = [] if script is subgroup_sim else here
    if "-v" in words:
        at = common.index("--inverted-imgs-dir")
        common = common[:at] + common[at + 2 :]
    with pytest.raises((InputError, FileNotFoundError, SystemExit)) as raised:
        script.main([*common, *words])
    if isinstance(raised.value, SystemExit):
        assert raised.value.code == 2
        assert message in capsys.readouterr().err
    else:
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_corrupt_checkpoint_ends_with_exit_code_2_and_no_traceback(study, here, tmp_path):
    (tmp_path / "damaged").mkdir()
    for arch in ARCHS:
        whole = (study / f"data/cnns/digits/eps1/{arch}.pt").read_bytes()
        (tmp_path / f"damaged/{arch}.pt").write_bytes(whole[: len(whole) // 2])
    words = [*here, "--model-dir", str(tmp_path / "damaged"), "-r", "cka"]
    done = subprocess.run([sys.executable, ROOT / "rep.py", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("rep.py: error: ") and "vgg11.pt" in done.stderr
