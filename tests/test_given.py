"""rep.py --reps and func.py --logits: files in, the scores of their arrays out; what does not fit is one line."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import func
import rep
from univ import results
from univ.errors import InputError
from univ.measures import cka, disagreement, error_consistency

N = 40
IDS = np.arange(N)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """Four files of representations in the working folder, each of another kind, and what they hold."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    held = {name: generator.normal(size=(N, 5 + i)).astype(np.float32) for i, name in enumerate("ABCD")}
    np.save("A.npy", held["A"].reshape(N, 5, 1))
    np.savez("B.npz", reps=held["B"], ids=IDS.astype(str))
    save_file({"features": held["C"], "ids": IDS}, "C.safetensors")
    torch.save(torch.from_numpy(held["D"]), "D.pt")
    return held


FILES = ["A.npy", "B.npz", "C.safetensors", "D.pt"]


def run(*words: str) -> None:
    rep.main(["--reps", *words, "-r", "cka", "--quiet", "--device", "cpu"])


def test_scores_are_those_of_the_arrays(arrays):
    rep.main(["--reps", *FILES, "-r", "cka", "linreg", "--quiet", "--device", "cpu", "--dataset-name", "words"])
    table = results.load_long_table("results")
    assert set(table["dataset"]) == {"words"} and set(table["eps"]) == {0.0}
    for row in table[table["measure"] == "cka"].itertuples():
        assert row.score == pytest.approx(cka(arrays[row.model1], arrays[row.model2]), abs=1e-12)
    assert len(table[table["measure"] == "cka"]) == 6
    record = json.loads(next(iter(results.find_results("results", ["cka"]).values())).with_suffix(".json").read_text())
    assert record["settings"]["inputs"]["all"]["n"] == N and set(record["settings"]["models"]) == set("ABCD")


def test_done_for_the_same_files_only(arrays):
    run("A.npy", "B.npz")
    path = next(iter(results.find_results("results").values()))
    before = path.stat().st_mtime_ns
    run("A.npy", "B.npz")
    assert path.stat().st_mtime_ns == before
    np.save("A.npy", arrays["A"] ** 2)
    run("A.npy", "B.npz", "-o", "eps3", "--num-inputs", "20")
    assert {file.eps for file in results.find_results("results")} == {"eps0", "eps3"}
    later = results.load_long_table("results").query("eps == 3")["score"].item()
    assert later == pytest.approx(cka(arrays["A"][:20] ** 2, arrays["B"][:20]))
    run("A.npy", "B.npz")
    assert path.stat().st_mtime_ns != before


def test_logits_with_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(N, 4, generator=generator) for name in "LM"}
    labels = torch.arange(N) % 4
    np.savez("L.npz", logits=logits["L"].numpy(), labels=labels.numpy())
    np.save("M.npy", logits["M"].numpy())
    func.main(["--logits", "L.npz", "M.npy", "-f", "dis", "error_consistency", "--quiet", "--device", "cpu"])
    score = results.load_long_table("results").set_index("measure")["score"]
    a, b = (each.argmax(1) for each in logits.values())
    assert score["dis"] == pytest.approx(disagreement(a, b))
    assert score["error_consistency"] == pytest.approx(error_consistency(a, b, labels))
    accuracies = results.load_accuracies("results").set_index("model")["accuracy"]
    assert accuracies["L"] == pytest.approx((a == labels).double().mean().item())
    np.savez("M.npz", logits=logits["M"].numpy(), labels=(labels + 1).numpy() % 4)
    with pytest.raises(InputError, match=r"M\.npz has other labels than L\.npz"):
        func.main(["--logits", "L.npz", "M.npz", "--quiet"])
    np.savez("K.npz", logits=logits["M"][:, :3].numpy())
    with pytest.raises(InputError, match="different classes"):
        func.main(["--logits", "L.npz", "K.npz", "--quiet"])


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def broken(name: str):
    """A file X.<kind> with something wrong in it."""
    fine = np.zeros((N, 3))
    match name:
        case "two arrays":
            np.savez("X.npz", a=fine, b=fine)
        case "objects":
            np.savez("X.npz", reps=np.array([Bomb()] * N, dtype=object))
        case "pickle":
            Path("X.npy").write_bytes(pickle.dumps(Bomb()))
        case "no zip":
            Path("X.npz").write_bytes(b"PK\x03\x04 and nothing more")
        case "no safetensors":
            Path("X.safetensors").write_bytes(b"\xff" * 20)
        case "nan":
            np.save("X.npy", np.where(np.arange(N)[:, None] == 7, np.nan, fine))
        case "text":
            np.save("X.npy", np.full((N, 2), "a"))
        case "complex":
            np.save("X.npy", fine + 1j)
        case "flat":
            np.save("X.npy", fine[:, 0])
        case "short":
            np.save("X.npy", fine[:-1])
        case "few ids":
            np.savez("X.npz", reps=fine, ids=IDS[1:])
        case "real ids":
            np.savez("X.npz", reps=fine, ids=IDS / 2)
        case "other ids":
            np.savez("X.npz", reps=fine, ids=IDS + 1)
        case "other order":
            np.savez("X.npz", reps=fine, ids=IDS[::-1])
        case "real labels":
            np.savez("X.npz", reps=fine, labels=IDS / 2)
        case "negative labels":
            np.savez("X.npz", reps=fine, labels=IDS - 1)
        case "csv":
            np.savetxt("X.csv", fine)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("two arrays", r"X\.npz holds 'a', 'b': expected an array 'reps'"),
        ("objects", r"X\.npz is not a readable \.npz file: Object arrays"),
        ("pickle", r"X\.npy is not a readable file of reps"),
        ("no zip", r"X\.npz is not a readable \.npz file"),
        ("no safetensors", r"X\.safetensors is not a readable \.safetensors file"),
        ("nan", r"X\.npy, 'reps': .*NaN or infinite values, first in row 7"),
        ("text", r"X\.npy"),
        ("complex", r"X\.npy, 'reps': complex"),
        ("flat", r"X\.npy, 'reps': .*got shape \(40,\)"),
        ("short", r"different numbers of rows: B\.npz 40, X\.npy 39"),
        ("few ids", r"X\.npz: ids are whole numbers or text, one for each of the 40 rows"),
        ("real ids", r"X\.npz: ids are whole numbers or text"),
        ("other ids", r"ids of X\.npz are not those of B\.npz but others, first in row 0: 1 and 0"),
        ("other order", r"but the same in another order, first in row 0: 39 and 0"),
        ("real labels", r"X\.npz: labels are classes"),
        ("negative labels", r"labels are classes from 0, found -1"),
        ("csv", r"X\.csv: --reps reads \.npy"),
    ],
)
def test_bad_files(what, message, arrays, tmp_path):
    broken(what)
    (path,) = tmp_path.glob("X.*")
    with pytest.raises(InputError, match=message):
        run("B.npz", path.name)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reps", "A.npy"], "--reps compares two files or more"),
        (["--reps", "A.npy", "no.npy"], "there is no file no.npy"),
        (["--reps", *FILES, "-d", "digits"], "leave out -d/--dataset"),
        (["--reps", *FILES, "-d", "imagenet", "-i", "0"], "leave out -d/--dataset, -i/--inv"),
        (["--reps", *FILES, "--cache-dir", "c"], "leave out --cache-dir"),
        (["--reps", *FILES, "--dataset-name", "a/b"], "--dataset-name"),
        (["--reps", *FILES, "--dataset-name", "digits"], "would replace results"),
        (["--dataset-name", "a"], "use it with --reps"),
    ],
)
def test_bad_flags(words, message, arrays, capsys):
    with pytest.raises(SystemExit) as left:
        rep.main(words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_too_few_rows_and_equal_names(arrays, tmp_path):
    with pytest.raises(InputError, match="--num-inputs 41: the files hold 40 rows"):
        run("A.npy", "B.npz", "--num-inputs", "41")
    (tmp_path / "other").mkdir()
    np.save("other/A.npy", arrays["A"])
    with pytest.raises(InputError, match=r"A\.npy and other/A\.npy would both be called A"):
        run("A.npy", "other/A.npy")


def test_sentences_are_compared_as_files():
    with pytest.raises(InputError, match=r"rep\.py --reps and func\.py --logits"):
        rep.main(["-d", "snli"])
