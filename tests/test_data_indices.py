"""Index and label files: every layout, every mistake; pairing of targets with seeds of another class."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from univ.data.indices import (
    draw_indices,
    draw_targets_and_seeds,
    read_indices,
    read_labels,
    read_or_draw,
    write_indices,
)
from univ.errors import InputError

settings.register_profile("univ", deadline=None)  # a busy machine is no failure
settings.load_profile("univ")

COLUMNS = arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 2**63 - 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("indices")


@given(COLUMNS)
def test_round_trip_and_pandas_layout(folder, values):
    path, theirs = folder / "ours.csv", folder / "pandas.csv"
    write_indices(path, torch.from_numpy(values))
    pd.DataFrame(values).to_csv(theirs)
    assert path.read_bytes() == theirs.read_bytes()
    assert np.array_equal(read_indices(path).numpy(), values)
    assert np.array_equal(pd.read_csv(path, index_col=0)["0"].to_numpy(), values)
    assert np.array_equal(read_labels(path, len(values)).numpy(), values)


@given(COLUMNS, st.booleans(), st.booleans(), st.sampled_from(["0", "label"]), st.sampled_from(["\n", "\r\n"]))
def test_labels_in_every_layout(folder, values, header, index, name, newline):
    path = folder / "labels.csv"
    pd.DataFrame({name: values}).to_csv(path, header=header, index=index, lineterminator=newline)
    assert np.array_equal(read_labels(path, len(values)).numpy(), values)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_give_indices_or_a_clear_error(folder, contents):
    path = folder / "noise.csv"
    path.write_bytes(contents)
    for read in (read_indices, read_labels):
        try:
            assert read(path).dtype == torch.int64
        except InputError as error:
            assert str(path) in str(error)


@given(COLUMNS, st.data())
def test_a_damaged_index_file_never_loses_a_row(folder, values, data):
    path = folder / "damaged.csv"
    write_indices(path, values)
    lines = path.read_text().splitlines(keepends=True)
    lines.pop(data.draw(st.integers(0, len(lines) - 1)))
    path.write_text("".join(lines))
    try:
        remaining = read_indices(path)
    except InputError:
        return
    assert torch.equal(remaining, torch.from_numpy(values[:-1]))  # only a missing last row goes unnoticed


def test_nothing_in_a_pickled_index_file_runs(tmp_path):
    class Dangerous:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    path = tmp_path / "indices.csv"
    path.write_bytes(pickle.dumps(Dangerous()))
    for read in (read_indices, read_labels):
        with pytest.raises(InputError, match=r"indices\.csv"):
            read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("", "is empty"),
        (",0\n", "no values"),
        ("5\n6\n", "begins with '5'"),
        (",0\n0,5\n1,-6\n", r"row 1 is '1,-6'"),
        (",0\n0,5\n1,6.0\n", r"row 1 is '1,6.0'"),
        (",0\n0,5\n2,6\n", r"row 1 is numbered '2'"),
        (",0\n0,5\n1,6,7\n", "row 2 has 3 cells"),
        (",0\n0,5\n1\n", "row 2 has 1 cells"),
        (",0\n0,99999999999999999999\n", "row 0"),
        (",0\n0,5\n1,10\n", "row 1 names image 10, but there are 10 images"),
    ],
)
def test_mistakes_in_index_files_are_named(tmp_path, contents, message):
    path = tmp_path / "indices_0.csv"
    path.write_text(contents)
    with pytest.raises(InputError, match=message) as error:
        read_indices(path, length=10)
    assert str(path) in str(error.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_indices(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_labels(tmp_path)


def test_a_bare_column_that_begins_with_class_0(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("0\n3\n1\n")
    assert read_labels(path, 3).tolist() == [0, 3, 1]  # three images: the 0 is a label
    assert read_labels(path, 2).tolist() == [3, 1]  # two images: it is pandas' header
    assert read_labels(path).tolist() == [0, 3, 1]
    with pytest.raises(InputError, match="3 labels for 5 images"):
        read_labels(path, 5)


def test_draws_are_seeded_distinct_and_ascending():
    indices = draw_indices(100, 1000, seed=1)
    assert torch.equal(indices, draw_indices(100, 1000, seed=1))
    assert not torch.equal(indices, draw_indices(100, 1000, seed=2))
    assert (indices.diff() > 0).all() and indices.min() >= 0 and indices.max() < 1000
    assert torch.equal(draw_indices(10, 10, seed=3), torch.arange(10))
    for n in (0, 11):
        with pytest.raises(InputError, match=f"cannot draw {n} of 10"):
            draw_indices(n, 10, seed=0)


def test_read_or_draw(tmp_path):
    path = tmp_path / "deep" / "indices_0.csv"
    drawn = read_or_draw(path, 5, 100, seed=0)
    assert len(drawn) == 5 and torch.equal(drawn, read_or_draw(path, 50, 100, seed=1))  # the file wins
    assert len(read_or_draw(tmp_path / "all.csv", 10_000, 360, seed=0)) == 360
    with pytest.raises(InputError, match="but there are 3 images"):
        read_or_draw(path, 5, 3, seed=0)


@given(
    labels=arrays(np.int64, st.integers(2, 60), elements=st.integers(0, 4)).filter(lambda labels: len(set(labels)) > 1),
    random_state=st.integers(0, 2**60),
    data=st.data(),
)
def test_a_seed_never_has_its_targets_class(labels, random_state, data):
    first_other = int((labels != labels[0]).argmax()) + 1
    bound = data.draw(st.integers(first_other, len(labels)))
    n = data.draw(st.integers(1, bound))
    targets, seeds = draw_targets_and_seeds(n, bound, torch.from_numpy(labels), random_state)
    assert targets.shape == seeds.shape == (n,)
    assert len(targets.unique()) == n and targets.max() < bound and targets.min() >= 0
    assert seeds.max() < bound and seeds.min() >= 0
    assert (labels[targets] != labels[seeds]).all()
    again = draw_targets_and_seeds(n, bound, torch.from_numpy(labels), random_state)
    assert torch.equal(targets, again[0]) and torch.equal(seeds, again[1])


def test_seeds_are_uniform_over_the_other_classes():
    labels = torch.tensor([0] * 8 + [1, 2])
    counts = torch.zeros(10)
    for random_state in range(600):
        targets, seeds = draw_targets_and_seeds(10, 10, labels, random_state)
        counts.index_add_(0, seeds[labels[targets] == 0], torch.ones(8))
    assert counts[:8].sum() == 0
    assert (counts[8] / counts.sum()).item() == pytest.approx(0.5, abs=0.03)  # 4800 draws: standard error 0.007


@pytest.mark.parametrize(
    ("n", "bound", "message"),
    [(3, 7, "past the data"), (6, 5, "cannot draw 6"), (0, 5, "cannot draw 0"), (1, 2, "all of class 0")],
)
def test_impossible_pairings_are_refused(n, bound, message):
    with pytest.raises(InputError, match=message):
        draw_targets_and_seeds(n, bound, torch.tensor([0, 0, 0, 1, 1]), 0)
