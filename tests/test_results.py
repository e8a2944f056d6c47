"""Names and layout of result files, writing and reading them, whether a result may be reused, and the legend."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from univ import results
from univ.errors import InputError
from univ.measures.cards import CARDS, find_card
from univ.results import ResultFile, layout, legend, made

MODELS = ["vgg11", "resnet10", "densenet17"]


def setting(measure: str, **changes) -> ResultFile:
    card = find_card(measure)
    about = {"dataset": "imagenet100", "models": "imagenet100", "eps": "eps3", "exp": "0.1"}
    return ResultFile(measure, **(about | {"center": card.centered, "normalize": card.normalized} | changes))


def square(seed: int = 0) -> pd.DataFrame:
    """Not symmetric, distinct cells."""
    values = np.random.default_rng(seed).random((3, 3))
    return pd.DataFrame(values, index=MODELS, columns=MODELS)


def published(root: Path, file: ResultFile, text: str) -> Path:
    """A CSV without JSON."""
    path = file.path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------- names

SPEC_TABLE = {
    "mag": "magnitude/standard/imagenet100/mag_eps3_0.1.csv",
    "con": "concentricity/standard/imagenet100/con_eps3_0.1.csv",
    "cos": "cos_sim/standard/imagenet100/cos_sim_mean_eps3_0.1.csv",
    "jacc": "jaccard/standard/cos_sim/imagenet100/jac_mean_eps3_0.1.csv",
    "rank": "rank/standard/cos_sim/imagenet100/rank_mean_eps3_0.1.csv",
    "rank_jacc": "joint/standard/cos_sim/imagenet100/joint_mean_eps3_0.1.csv",
    "proc": "procrustes/standard/imagenet100/proc_norm_mean_eps3_0.1.csv",
    "shape": "shape/standard/imagenet100/shape_mean_eps3_0.1.csv",
    "cka": "cka/standard/10000/imagenet100/cka_eps3_0.1.csv",
    "gulp": "gulp/standard/imagenet100/gulp_mean_eps3_0.1.csv",
    "rtd": "rtd/standard/imagenet100/rtd_mean_eps3_0.1.csv",
    "dis": "disagreement/standard/imagenet100/dis_eps3_0.1.csv",
    "norm": "norm_dis/standard/imagenet100/norm_dis_eps3_0.1.csv",
    "kappa": "kappa/standard/imagenet100/kappa_eps3_0.1.csv",
    "jsd": "jsd/standard/imagenet100/jsd_eps3_0.1.csv",
    "churn": "churn/standard/imagenet100/churn_eps3_0.1.csv",
    "amb": "ambiguity/standard/imagenet100/amb_eps3_0.1.csv",
    "disc": "discrepancy/standard/imagenet100/dis_eps3_0.1.csv",
}


def test_published_path_of_every_measure():
    paths = {key: str(setting(key).path("")) for key, card in CARDS.items() if card.studied}
    assert paths == SPEC_TABLE
    inverted = {key: str(setting(key, inverted=True).path("")) for key in SPEC_TABLE}
    assert inverted == {key: path.replace("standard", "inverted") for key, path in SPEC_TABLE.items()}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"measure": "proc", "normalize": False}, "proc_mean_eps3_0.1.csv"),
        ({"measure": "proc", "center": False}, "proc_norm_eps3_0.1.csv"),
        ({"measure": "jacc", "center": False}, "jac_eps3_0.1.csv"),
        ({"measure": "cka", "center": True, "normalize": True}, "cka_eps3_0.1.csv"),
        ({"measure": "dis", "center": True, "normalize": True}, "dis_eps3_0.1.csv"),
        ({"measure": "proc", "adversarial": True}, "proc_norm_mean_adv_eps3_0.1.csv"),
        ({"measure": "proc", "sample": True, "inverted": True}, "proc_norm_mean_sample_eps3_0.1.csv"),
        ({"measure": "jsd", "baseline": True}, "jsd_base_eps3_0.1.csv"),
        ({"measure": "cka", "eps": "eps025", "exp": "10"}, "cka_eps025_10.csv"),
        ({"measure": "new_measure"}, "new_measure_mean_eps3_0.1.csv"),
    ],
)
def test_parts_of_a_name(changes, name):
    assert setting(**changes).path("r").name == name


def test_folders_and_files_beside():
    assert setting("jacc", function="euc").folder("r") == Path("r/jaccard/standard/euc/imagenet100")
    assert setting("proc", dataset="sat6", models="cifar10").folder("r") == Path("r/procrustes/standard/sat6/cifar10")
    # models of another data set change nothing elsewhere
    assert setting("proc", models="imagenet").folder("r") == Path("r/procrustes/standard/imagenet100")
    file = setting("proc", baseline=True)
    assert file.singles_path("r") == file.folder("r") / "proc_norm_mean_base_all_eps3_0.1.csv"


@pytest.mark.parametrize("changes", [{}, {"inverted": True}, {"baseline": True, "dataset": "sat6"}, {"sample": True}])
def test_parse_inverts_path(changes):
    for file in (setting(measure, **changes) for measure in SPEC_TABLE):
        assert results.parse_path(file.path(Path("r")), Path("r")) == file


@pytest.mark.parametrize("name", ["cka_eps3_0.1_ci.csv", "summary.csv", "cka_all_eps3_0.1.csv", "cka_3_0.1.csv"])
def test_other_csvs_are_not_scores(name):
    assert results.parse_path(Path("r/cka/standard/10000/digits") / name, Path("r")) is None


def test_both_spellings_of_a_tag():
    spellings = {"10": ["10", "10.0"], "10.0": ["10.0", "10"], "0.1": ["0.1"], "pilot": ["pilot"]}
    assert {tag: results.exp_spellings(tag) for tag in spellings} == spellings
    assert results.canonical_exp("10.0") == "10"


# ------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("changes", [{}, {"inverted": True}, {"inverted": True, "sample": True}])
def test_the_drivers_table_is_written_as_it_is_to_the_last_bit(tmp_path, changes):
    scores = square().where(square() > 0.1)
    path = results.write(tmp_path, setting("cka", **changes), scores, {"center": True})
    assert path.read_text().splitlines()[0] == ",vgg11,resnet10,densenet17" and scores.isna().sum().sum() == 2
    for read in (results.read_matrix(path), pd.read_csv(path, index_col=0)):
        pd.testing.assert_frame_equal(read, scores, check_exact=True)


def test_one_number_per_model_and_one_per_set(tmp_path):
    row = results.write(tmp_path, setting("mag"), pd.DataFrame([[1.0, 2.0, 3.0]], columns=MODELS), {})
    assert row.read_text() == ",vgg11,resnet10,densenet17\n0,1.0,2.0,3.0\n"
    cell = results.write(tmp_path, setting("disc"), pd.DataFrame({"disc": [0.25]}), {})
    assert cell.read_text() == ",disc\n0,0.25\n"


def test_single_scores_are_lists_in_brackets(tmp_path):
    singles = pd.DataFrame([[[0.0], [1 / 3, 0.5]], [[np.nan, 0.5], [0.0]]], index=MODELS[:2], columns=MODELS[:2])
    file = setting("cka", inverted=True, baseline=True)
    results.write(tmp_path, file, square(), {}, singles=singles)
    text = file.singles_path(tmp_path).read_text()
    assert text == ',vgg11,resnet10\n0,[0.0],"[0.3333333333333333, 0.5]"\n1,"[nan, 0.5]",[0.0]\n'
    with pytest.raises(ValueError, match="baseline"):
        results.write(tmp_path, setting("cka"), square(), {}, singles=square())


def test_the_json_tells_how_the_csv_was_made(tmp_path):
    settings = {"models": tuple(MODELS), "data": Path("a/b"), "mine": [1, {"b": None}]}
    path = results.write(tmp_path, setting("cka"), square(), settings, {"commit": "c0ffee", "more": 1.5})
    record = results.read_record(path)
    assert record["settings"] == {"models": MODELS, "data": "a/b", "mine": [1, {"b": None}]}
    assert record["commit"] == "c0ffee" and record["more"] == 1.5
    assert not list(path.parent.glob("*.tmp"))


# ------------------------------------------------------------------------------------------------- the legend


def test_the_first_result_brings_the_legend(tmp_path):
    results.write(tmp_path, setting("cka"), square(), {})
    path = tmp_path / "README.md"
    said = path.read_text()
    for card in CARDS.values():
        assert f"| {card.key} | {card.folder} | `{card.file}_...csv` |" in said
    for word in (*(part for part, _ in layout.PARTS.values()), *layout.COMPANIONS, "<exp>", "10000"):
        assert word in said
    assert "{" not in said
    assert len(results.load_long_table(tmp_path)) == 3  # it is no result
    path.write_text("mine")
    results.write(tmp_path, setting("proc"), square(), {})
    assert path.read_text() == "mine"


def test_a_folder_that_may_not_be_written_has_no_legend(tmp_path, monkeypatch):
    def refuse(path, text):
        with legend.files.cannot_write(path):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(legend.files, "write_text", refuse)
    legend.write(tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- done?


def test_done_for_the_same_settings_only(tmp_path):
    file, settings = setting("jacc"), {"knn": 10, "models": MODELS, "alpha": 1.0, "nothing": math.nan}
    assert not results.check(tmp_path, file, settings)
    results.write(tmp_path, file, square(), settings)
    assert results.check(tmp_path, file, settings)
    assert results.check(tmp_path, file, settings | {"alpha": 1, "models": tuple(MODELS)})
    status = results.check(tmp_path, file, settings | {"knn": 500})
    assert not status and "knn was 10, now 500" in status.reason


def test_a_published_csv_is_done_with_a_notice(tmp_path):
    path = published(tmp_path, setting("cka", exp="10.0"), square().to_csv())  # the published spelling
    status = results.check(tmp_path, setting("cka", exp="10"), {"knn": 3})
    assert status and "unknown" in status.reason and status.path == path


@pytest.mark.parametrize(("damage", "reason"), [(".csv", "does not fit"), (".json", "is not JSON")])
def test_a_csv_that_does_not_fit_its_json_is_not_done(tmp_path, damage, reason):
    path = results.write(tmp_path, setting("cka"), square(), {})
    damaged = path.with_suffix(damage)
    damaged.write_text(damaged.read_text()[:-20])
    status = results.check(tmp_path, setting("cka"), {})
    assert not status and str(path) in status.reason and reason in status.reason


def test_killed_between_json_and_csv(tmp_path, monkeypatch):
    file = setting("jacc")
    results.write(tmp_path, file, square(0), {"knn": 10})
    monkeypatch.setattr(made.files, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(made.files, "write_json", lambda path, value: Path(path).write_text(json.dumps(value)))
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path, file, square(1), {"knn": 500})
    assert not results.check(tmp_path, file, {"knn": 500})
    table = results.load_long_table(tmp_path, settings=["knn"])
    assert len(table) == 3 and table["knn"].isna().all()  # the old scores are not called k = 500


def test_a_baseline_and_its_companions_are_done_together(tmp_path):
    file = setting("cka", baseline=True)
    results.write(tmp_path, file, square(), {"p": 2})
    assert not results.check(tmp_path, file, {"p": 2})
    results.write(tmp_path, file, square(), {"p": 2}, singles=square().map(lambda score: [score, score]))
    assert results.check(tmp_path, file, {"p": 2})
    assert not results.check(tmp_path, file, {"p": 2}, companions={"ci": {"p": 2}})
    intervals = pd.DataFrame({"model1": ["a"], "model2": ["b"], "low": [0.0], "high": [1.0]})
    results.write_companion(tmp_path, file, "ci", intervals, {"p": 2})
    assert results.check(tmp_path, file, {"p": 2}, companions={"ci": {"p": 2}})


# ------------------------------------------------------------------------------------------------- long tables


def test_long_table_of_regular_images_has_each_pair_once(tmp_path):
    scores = square()
    results.write(tmp_path, setting("cka"), scores, {})
    table = results.load_long_table(tmp_path)
    pairs = [("vgg11", "resnet10"), ("vgg11", "densenet17"), ("resnet10", "densenet17")]
    about = ("cka", 3.0, "imagenet100", "standard", "0.1")
    expected = [(*pair, scores.loc[pair], *about) for pair in pairs]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=results.LONG_COLUMNS))


def test_a_published_lower_triangle_is_read_from_the_other_side(tmp_path):
    scores = square().where(np.tril(np.ones((3, 3), dtype=bool)))
    published(tmp_path, setting("cka"), scores.to_csv())
    table = results.load_long_table(tmp_path)
    assert table.score.tolist() == [scores.iloc[1, 0], scores.iloc[2, 0], scores.iloc[2, 1]]


def test_long_table_of_inverted_images_has_both_cells_and_names_the_source_first(tmp_path):
    scores = square()  # column: source
    results.write(tmp_path, setting("dis", inverted=True), scores, {})
    table = results.load_long_table(tmp_path)
    cells = {(row.model1, row.model2): row.score for row in table.itertuples()}
    assert cells == {(a, b): scores.loc[b, a] for a in MODELS for b in MODELS if a != b}


def test_long_table_keeps_to_one_kind_and_preprocessing(tmp_path):
    kinds = [{}, {"normalize": False}, {"center": False}, {"baseline": True}]
    for seed, changes in enumerate(kinds):
        results.write(tmp_path, setting("proc", **changes), square(seed), {})
    results.write(tmp_path, setting("jacc", function="euc"), square(4), {})
    for seed, which in enumerate([{}, {"normalize": False}, {"center": False}, {"kind": "base"}, {"function": "euc"}]):
        table = results.load_long_table(tmp_path, ["jacc" if seed == 4 else "proc"], **which)
        assert len(table) == 3 and table.score.iloc[0] == square(seed).iloc[0, 1]


def test_one_result_under_two_spellings_counts_once(tmp_path):
    results.write(tmp_path, setting("cka", exp="10"), square(0), {})
    published(tmp_path, setting("cka", exp="10.0"), square(1).to_csv())
    table = results.load_long_table(tmp_path)
    assert len(table) == 3 and set(table.exp) == {"10"} and table.score.iloc[0] == square(0).iloc[0, 1]


def test_a_directional_measure_beyond_the_list_keeps_both_directions(tmp_path):
    about = {"dataset": "sat6", "models": "cifar10"}
    results.write(tmp_path, setting("mutual_knn", **about), (square() + square().T) / 2, {})
    results.write(tmp_path, setting("linear_predictivity", **about), square(), {})
    table = results.load_long_table(tmp_path)
    assert table.groupby("measure").size().to_dict() == {"mutual_knn": 3, "linear_predictivity": 6}
    assert set(table.dataset) == {"sat6/cifar10"}  # there the models' training data are named


@pytest.mark.parametrize("folder", ["", "missing"])
def test_an_empty_or_missing_folder_gives_empty_tables(tmp_path, folder):
    root = tmp_path / folder
    table = results.load_long_table(root, settings=["knn"])
    assert table.empty and list(table.columns) == [*results.LONG_COLUMNS, "knn"]
    loaders = results.load_subgroups, results.load_probe_agreement, results.load_accuracies, results.load_model_table
    assert all(load(root).empty for load in loaders)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",a,b\na,1,x\nb,2,1\n"])
def test_a_csv_that_is_no_matrix_is_named(tmp_path, text):
    published(tmp_path, setting("cka"), text)
    with pytest.raises(InputError, match=r"cka_eps3_0\.1\.csv"):
        results.load_long_table(tmp_path)


def test_scores_per_model_and_per_set(tmp_path):
    results.write(tmp_path, setting("mag"), pd.DataFrame([[1.0, 2.0, 3.0]], columns=MODELS), {})
    results.write(tmp_path, setting("con", inverted=True), square(), {})
    results.write(tmp_path, setting("amb"), pd.DataFrame({"amb": [0.5]}), {})
    results.write(tmp_path, setting("disc", inverted=True), pd.DataFrame([[0.1, 0.2, 0.3]], columns=MODELS), {})
    table = results.load_model_table(tmp_path)
    assert table.groupby("measure").size().to_dict() == {"mag": 3, "con": 9, "amb": 1, "disc": 3}
    con = table[table.measure == "con"].set_index(["source", "model"]).score
    assert con["vgg11", "resnet10"] == square().loc["resnet10", "vgg11"]  # the column is the source
    disc = table[table.measure == "disc"]
    assert disc.source.tolist() == MODELS and set(disc.model) == {""}
    assert results.load_long_table(tmp_path).empty


def test_accuracies_come_from_the_json_beside_disagreement(tmp_path):
    accuracy = dict(zip(MODELS, [0.9, 0.8, 0.7]))
    results.write(tmp_path, setting("dis"), square(), {}, {"num_classes": 10, "accuracy": accuracy})
    by_source = {"num_classes": 10, "accuracy": dict.fromkeys(MODELS, accuracy)}
    results.write(tmp_path, setting("dis", inverted=True), square(), {}, by_source)
    table = results.load_accuracies(tmp_path)
    assert table.groupby("input").size().to_dict() == {"inverted": 9, "standard": 3}
    assert table[table.input == "standard"].set_index("model").accuracy["resnet10"] == 0.8


def test_recorded_accuracies_come_before_evaluations(tmp_path):
    rows = [("a", "cifar10", 10.0, "0", 0), ("vgg11", "digits", 50.0, "eps1", 0), ("vgg11", "digits", 40.0, "eps1", 1)]
    rows += [("a", "cifar10", 93.0, "0", 0)]  # later than the first, so this one counts
    table = pd.DataFrame(rows, columns=["model", "dataset", "acc", "trained_eps", "attack_eps"])
    (tmp_path / "accuracy").mkdir()
    table.to_csv(tmp_path / "accuracy/a.csv", index=False)
    paths = results.find_evaluations(tmp_path, [tmp_path / "accuracy/a.csv"])  # named and found: read once
    evaluations = results.load_evaluations(paths)
    assert evaluations["accuracy"].tolist() == [0.5, 0.4, 0.93]
    file = setting("dis", dataset="digits", models="digits", eps="eps1")
    results.write(tmp_path, file, square(), {}, {"num_classes": 10, "accuracy": {"vgg11": 0.75}})
    both = results.complete_accuracies(results.load_accuracies(tmp_path), evaluations)
    about = [["vgg11", "digits", 0.75, 10, 1.0], ["a", "cifar10", 0.93, 10, 0.0]]
    assert both[["model", "dataset", "accuracy", "num_classes", "eps"]].values.tolist() == about


def test_subgroups(tmp_path):
    row = {"metric": "cka", "score": 0.5, "model1": "a", "model2": "b", "k": 10, "perc_k": None, "pred_type": "agree"}
    pd.DataFrame([row | {"eps": "eps3"}, row | {"eps": 0.0}]).to_csv(tmp_path / "repsim_subgroups.csv")
    table = results.load_subgroups(tmp_path)
    assert table.eps.tolist() == [3.0, 0.0] and "Unnamed: 0" not in table
    pd.testing.assert_frame_equal(results.load_subgroups(tmp_path / "repsim_subgroups.csv"), table)
    (tmp_path / "repsim_subgroups.csv").write_text("metric,score\ncka,1\n")
    with pytest.raises(InputError, match="pred_type"):
        results.load_subgroups(tmp_path)


def test_probe_agreement_knows_its_probes_from_the_json(tmp_path):
    table = pd.DataFrame({"probe_1": ["r/t/0"], "probe_2": ["v/t/0"], "agreement": [0.75]})
    probes = {f"{arch}/t/0": {"arch": arch, "eps": "eps3", "dataset": "digits"} for arch in "rv"}
    path = tmp_path / "probing" / "probe_agreement.csv"
    made.write_csv(path, table.to_csv(index=False), {}, {"probes": probes})
    read = results.load_probe_agreement(tmp_path)
    assert read.iloc[0][["arch_1", "arch_2", "eps", "dataset"]].tolist() == ["r", "v", 3.0, "digits"]
    path.with_suffix(".json").unlink()
    assert results.load_probe_agreement(path).iloc[0][["arch_1", "arch_2"]].tolist() == ["r", "v"]
