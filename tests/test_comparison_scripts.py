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

import func
import rep
import subgroup_sim
from univ.compare import inputs
from univ.data import open_images
from univ.errors import InputError
from univ.inversion.images import save_inverted
from univ.models import build_model, checkpoints

ARCHS = ["vgg11", "resnet10", "resnext14_4x32d"]
N_INVERTED = 40
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Random networks of three architectures and random "inverted" images with their report, in spec 03's layout."""
    root = tmp_path_factory.mktemp("study")
    generator = torch.Generator().manual_seed(0)
    images = open_images("digits")
    for i, arch in enumerate(ARCHS):
        model = build_model(arch, "digits", seed=i)
        checkpoints.save_checkpoint(root / f"data/cnns/digits/eps1/{arch}.pt", model, epoch=1)
        targets = torch.randperm(len(images), generator=generator)[:N_INVERTED]
        pixels = torch.stack([images[int(t)][0] for t in targets])
        noise = torch.rand(pixels.shape, generator=generator)
        save_inverted(root / f"data/digits/inverted/{arch}_eps1.pt", pixels / 2 + noise / 2)
        report = pd.DataFrame({"target_index": targets, "target_label": images.labels[targets]})
        report.to_csv(root / f"data/digits/inverted/{arch}_eps1.csv", index=False)
    return root


@pytest.fixture
def here(study, tmp_path, monkeypatch):
    """Words every command needs; results go to a new folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    places = ["--model-dir", str(study / "data/cnns"), "--inverted-imgs-dir", str(study / "data/digits/inverted")]
    models = ["-d", "digits", "-m", "digits", "-o", "eps1", "--model-names", *ARCHS]
    return [*models, *places, "--quiet", "--device", "cpu", "--workers", "0"]


def forward(study, arch, images):
    """(representation, logits) by a plain forward pass with a hook of the test's own."""
    model = build_model(arch, "digits").eval()
    model.load_state_dict(checkpoints.load_checkpoint(study / f"data/cnns/digits/eps1/{arch}.pt")["model"])
    inputs = []
    model.head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(1)))
    with torch.no_grad():
        logits = model(images)
    return inputs[0], logits


def regular_images():
    images = open_images("digits")
    return torch.stack([images[i][0] for i in range(len(images))]), images.labels


def read(path):
    return pd.read_csv(path, index_col=0)


def test_rep_writes_the_published_files_with_scores_of_the_definition(study, here):
    rep.main([*here, "-r", "cka", "proc", "jacc", "mag", "con", "-k", "10"])
    root = Path("results")
    expected = {
        "cka/standard/10000/digits/cka_eps1_0.csv",
        "procrustes/standard/digits/proc_norm_mean_eps1_0.csv",
        "jaccard/standard/cos_sim/digits/jac_mean_eps1_0.csv",
        "magnitude/standard/digits/mag_eps1_0.csv",
        "concentricity/standard/digits/con_eps1_0.csv",
        "indices/digits/indices_0.csv",
    }
    assert {str(path.relative_to(root)) for path in root.rglob("*.csv")} == expected
    order = pd.read_csv(root / "indices/digits/indices_0.csv")["0"].tolist()
    pixels, _ = regular_images()
    x, y = (forward(study, arch, pixels[order])[0].double().numpy() for arch in ARCHS[:2])
    for path, oracle in [
        ("cka/standard/10000/digits/cka_eps1_0.csv", oracles.cka(x, y)),
        ("procrustes/standard/digits/proc_norm_mean_eps1_0.csv", oracles.procrustes(x, y)),
        ("jaccard/standard/cos_sim/digits/jac_mean_eps1_0.csv", oracles.jaccard(x, y, k=10)),
    ]:
        assert read(root / path).loc["vgg11", "resnet10"] == pytest.approx(oracle, abs=1e-6)
    magnitude = read(root / "magnitude/standard/digits/mag_eps1_0.csv")
    assert list(magnitude.columns) == ARCHS and magnitude.index.tolist() == [0]
    assert magnitude["vgg11"].item() == pytest.approx(np.linalg.norm(x.mean(axis=0)), rel=1e-6)


def test_on_inverted_images_the_column_names_their_model(study, here):
    rep.main([*here, "-r", "cka", "-i", "1"])
    func.main([*here, "-f", "dis", "-i", "1"])
    cka = read("results/cka/inverted/10000/digits/cka_eps1_0.csv")
    dis = read("results/disagreement/inverted/digits/dis_eps1_0.csv")
    for source in ARCHS[:2]:
        pixels = torch.load(study / f"data/digits/inverted/{source}_eps1.pt", weights_only=True)
        found = {arch: forward(study, arch, pixels) for arch in ARCHS[:2]}
        (x, p), (y, q) = found.values()
        other = ARCHS[1] if source == ARCHS[0] else ARCHS[0]
        assert cka.loc[other, source] == pytest.approx(oracles.cka(x.double().numpy(), y.double().numpy()), abs=1e-6)
        assert dis.loc[other, source] == (p.argmax(1) != q.argmax(1)).double().mean().item()
    assert cka.loc["vgg11", "resnet10"] != cka.loc["resnet10", "vgg11"]


def test_func_records_the_accuracies_that_the_bounds_need(study, here):
    func.main([*here, "-f", "all"])
    made = json.loads(Path("results/disagreement/standard/digits/dis_eps1_0.json").read_text())
    pixels, labels = regular_images()
    order = torch.tensor(pd.read_csv("results/indices/digits/indices_0.csv")["0"].tolist())
    correct = forward(study, "vgg11", pixels[order])[1].argmax(1) == labels[order]
    assert made["num_classes"] == 10
    assert made["accuracy"]["vgg11"] == pytest.approx(correct.double().mean().item())
    func.main([*here, "-f", "dis", "-i", "1"])
    by_source = json.loads(Path("results/disagreement/inverted/digits/dis_eps1_0.json").read_text())["accuracy"]
    assert set(by_source) == set(by_source["vgg11"]) == set(ARCHS)


def test_a_result_is_reused_for_the_same_settings_only(here, monkeypatch):
    words = [*here, "-r", "jacc", "cka"]
    rep.main([*words, "-k", "10"])
    jacc, cka = (next(Path("results").rglob(name)) for name in ("jac_*.csv", "cka_*.csv"))
    first, times = read(jacc), (jacc.stat().st_mtime_ns, cka.stat().st_mtime_ns)
    with monkeypatch.context() as patch:  # nothing is loaded when nothing is to be computed
        patch.setattr(inputs, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        rep.main([*words, "-k", "10"])
    assert (jacc.stat().st_mtime_ns, cka.stat().st_mtime_ns) == times
    rep.main([*words, "-k", "20"])
    assert not read(jacc).equals(first)
    assert cka.stat().st_mtime_ns == times[1]  # k is no setting of cka
    rep.main([*words, "-k", "20", "--overwrite"])
    assert cka.stat().st_mtime_ns != times[1]


def test_the_cache_spares_the_forward_passes(here, monkeypatch):
    words = [*here, "--cache-dir", "cache"]
    rep.main([*words, "-i", "1", "--no-comparisons"])
    assert not list(Path("results").rglob("*.json"))
    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    func.main([*words, "-i", "1", "-f", "dis"])
    assert read("results/disagreement/inverted/digits/dis_eps1_0.csv").shape == (3, 3)


def test_baselines_hold_the_mean_and_the_single_scores(here):
    rep.main([*here, "-r", "cka", "mag", "-p", "3"])
    folder = Path("results/cka/standard/10000/digits")
    singles = pd.read_csv(folder / "cka_base_all_eps1_0.csv", index_col=0)
    cell = json.loads(singles.loc[0, "resnet10"])
    assert len(cell) == 3 and list(singles.columns) == ARCHS
    assert read(folder / "cka_base_eps1_0.csv").loc["vgg11", "resnet10"] == pytest.approx(np.mean(cell))
    assert abs(np.mean(cell)) < 0.05  # unbiased: about 0 under permutation
    assert not Path("results/magnitude").exists()


def test_intervals_and_null_tests_are_written_beside_the_matrix(here):
    words = [*here, "-f", "dis", "-i", "1", "--ci", "-p", "19"]
    func.main(words)
    folder = Path("results/disagreement/inverted/digits")
    matrix = read(folder / "dis_base_eps1_0.csv")
    tables = {name: pd.read_csv(folder / f"dis_base_eps1_0_{name}.csv") for name in ("ci", "pvalue", "calibrated")}
    assert all(len(table) == 6 for table in tables.values())
    assert list(tables["ci"].columns) == ["model1", "model2", "score", "low", "high"]
    assert ((tables["ci"].low <= tables["ci"].score) & (tables["ci"].score <= tables["ci"].high)).all()
    assert tables["pvalue"].p_value.between(1 / 20, 1).all()
    func.main([*here, "-f", "dis", "-i", "1", "--ci", "0.8"])
    observed = read(folder / "dis_eps1_0.csv")  # the column is the source, which the long tables name first
    narrow = pd.read_csv(folder / "dis_eps1_0_ci.csv").set_index(["model1", "model2"])
    for (source, other), row in narrow.iterrows():
        assert row.score == observed.loc[other, source]
    func.main([*here, "-f", "dis", "-i", "1", "--ci", "0.5"])  # another level is computed, not taken as done
    narrower = pd.read_csv(folder / "dis_eps1_0_ci.csv")
    assert (narrower.high - narrower.low).sum() < (narrow.high - narrow.low).sum()
    wide = tables["ci"].set_index(["model1", "model2"])
    assert ((narrow.high - narrow.low) <= (wide.high - wide.low)).all()
    assert matrix.shape == observed.shape


def test_measures_beyond_the_studys_list(here):
    rep.main([*here, "-r", "cka_biased", "mutual_knn", "linreg"])
    func.main([*here, "-f", "more"])
    found = {path.name for path in Path("results").rglob("*_eps1_0.csv")}
    assert {"error_consistency_eps1_0.csv", "capa_eps1_0.csv"} <= found
    assert len(found) == 5


def test_stir_compares_inverted_images_with_their_targets(study, here, tmp_path):
    source = study / "data/digits/inverted/vgg11_eps1"
    for arch in ARCHS:  # STIR needs one set of targets
        (tmp_path / "inverted").mkdir(exist_ok=True)
        for suffix in (".pt", ".csv"):
            (tmp_path / "inverted" / f"{arch}_eps1{suffix}").symlink_to(source.with_suffix(suffix))
    rep.main([*here, "-r", "stir", "-i", "1", "--inverted-imgs-dir", str(tmp_path / "inverted")])
    scores = read("results/stir/inverted/digits/stir_eps1_0.csv")
    pixels, _ = regular_images()
    chosen = pd.read_csv(source.with_suffix(".csv"))["target_index"].tolist()
    inverted = torch.load(source.with_suffix(".pt"), weights_only=True)
    x, y = (forward(study, "resnet10", images)[0].double().numpy() for images in (pixels[chosen], inverted))
    assert scores.loc["resnet10", "vgg11"] == pytest.approx(oracles.cka(x, y), abs=1e-6)
    with pytest.raises(InputError, match="towards different images"):
        rep.main([*here, "-r", "stir", "-i", "1"])


def test_pooled_inverted_images_are_one_set_for_all(here):
    rep.main([*here, "-r", "cka", "-i", "1", "-s", "1", "--num-inputs", "30"])
    scores = read("results/cka/inverted/10000/digits/cka_sample_eps1_0.csv")
    assert scores.equals(scores.T)
    func.main([*here, "-f", "dis", "-i", "1", "-s", "1", "--num-inputs", "30"])
    assert Path("results/disagreement/inverted/digits/dis_sample_eps1_0.csv").exists()


def test_adversarial_images_have_names_of_their_own(here):
    func.main([*here, "-f", "dis", "-v", "1"])
    assert Path("results/disagreement/inverted/digits/dis_adv_eps1_0.csv").exists()


def test_a_measure_that_cannot_be_computed_is_named_and_the_others_go_on(study, here, tmp_path, capsys):
    for path in (study / "data/digits/inverted").glob("*.pt"):
        (tmp_path / "unlabelled").mkdir(exist_ok=True)
        (tmp_path / "unlabelled" / path.name).symlink_to(path)
    with pytest.raises(SystemExit) as left:
        func.main([*here, "-f", "norm", "dis", "-i", "1", "--inverted-imgs-dir", str(tmp_path / "unlabelled")])
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


def test_subgroups_from_the_cache(study, here):
    rep.main([*here, "--cache-dir", "cache", "--no-comparisons"])
    words = ["--cache-dir", "cache", "--dataset", "digits", "--eps", "eps1", "--measures", "cka", "proc", "--quiet"]
    subgroup_sim.main(words)
    path = Path("results/subgroups/digits/repsim_subgroups.csv")
    table = pd.read_csv(path)
    assert len(table) == 2 * 3 * 2  # measures, pairs, groups
    pixels, _ = regular_images()
    order = pd.read_csv("results/indices/digits/indices_0.csv")["0"].to_numpy()
    (x, p), (y, q) = (forward(study, arch, pixels[order]) for arch in ("resnet10", "resnext14_4x32d"))
    agree = (p.argmax(1) == q.argmax(1)).numpy()
    rows = table[(table.metric == "cka") & table.model1.isin(["resnet10", "resnext14_4x32d"])]
    rows = rows[rows.model2.isin(["resnet10", "resnext14_4x32d"])].set_index("pred_type")
    for group, chosen in {"agree": agree, "disagree": ~agree}.items():
        assert rows.loc[group, "n"] == chosen.sum()
        if chosen.sum() >= 4:
            score = oracles.cka(x[chosen].double().numpy(), y[chosen].double().numpy())
            assert rows.loc[group, "score"] == pytest.approx(score, abs=1e-6)
        else:
            assert np.isnan(rows.loc[group, "score"])
    before = path.stat().st_mtime_ns
    subgroup_sim.main(words)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"--models alexnet: not in the cache of eps1, which holds"):
        subgroup_sim.main([*words, "--models", "alexnet"])


def test_subgroups_on_inverted_images_compare_each_source_with_the_others(here):
    rep.main([*here, "-i", "1", "--cache-dir", "cache", "--no-comparisons"])
    words = ["--cache-dir", "cache", "--dataset", "digits", "--eps", "eps1", "--inv", "1", "--quiet"]
    subgroup_sim.main([*words, "--measures", "proc"])
    table = pd.read_csv("results/subgroups/digits/repsim_subgroups.csv")
    assert len(table) == 6 * 2 and not (table.model1 == table.model2).any()
    assert (table.groupby(["model1", "model2"])["n"].sum() == N_INVERTED).all()


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
    folder = tmp_path / "damaged"
    folder.mkdir()
    for arch in ARCHS:
        whole = (study / f"data/cnns/digits/eps1/{arch}.pt").read_bytes()
        (folder / f"{arch}.pt").write_bytes(whole[: len(whole) // 2])
    words = [*here, "--model-dir", str(folder), "-r", "cka"]
    done = subprocess.run([sys.executable, ROOT / "rep.py", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("rep.py: error: ") and "vgg11.pt" in done.stderr
