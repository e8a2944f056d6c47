"""How a file was made: what two settings differ in, and rows that say what they were made with."""

import math

import pandas as pd
import pytest

from univ.errors import InputError
from univ.results import made


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"a": 1, "b": None}, {"a": 2, "b": None}, ["a was 1, now 2"]),
        ({"a": (1, 2), "nan": math.nan}, {"a": [1, 2], "nan": math.nan}, []),
        ({"m": {"x": {"hash": "f00"}}}, {"m": {"x": {"hash": "bad"}}}, ["m x hash was f00, now bad"]),
        ({"attack": None}, {"attack": {"eps": 0.5}}, ["attack eps was none, now 0.5"]),
        ({"attack": {"eps": 0.5}}, {"attack": None}, ["attack eps was 0.5, now none"]),
        ({}, {"published": True}, ["published was not recorded, now true"]),
        ({"published": True}, {}, ["published was true, now not recorded"]),
        ({"list": list(range(99))}, {"list": []}, [f"list was {str(list(range(99)))[:57]}..., now []"]),
    ],
)
def test_differences_name_what_differs_and_nothing_else(old, new, words):
    assert made.differences(old, new) == words


def test_of_many_differences_the_first_ones_are_listed():
    assert made.listed(list("abcdefghi")) == "a; b; c; d; e; f; and 3 more"


def test_rows_come_back_with_their_settings(tmp_path):
    path = tmp_path / "t.csv"
    rows = made.Rows.read(path)
    rows.add(pd.DataFrame({"eps": ["0", "0"], "score": [0.5, 1 / 3]}), [{"k": 1}, {"k": 2}])
    rows.write({"dataset": "digits"}, {"commit": "c0ffee"})
    rows = made.Rows.read(path)
    assert rows.table["score"].tolist() == [0.5, 1 / 3] and rows.table["eps"].tolist() == ["0", "0"]
    assert [rows.settings[entry] for entry in rows.table["made"]] == [{"k": 1}, {"k": 2}]
    assert made.read(path)[0]["settings"] == {"dataset": "digits"} and made.check(path, {"dataset": "digits"})

    rows.table = rows.table.iloc[1:]
    for _ in range(2):
        rows.write({}, {})
    assert list(made.Rows.read(path).settings.values()) == [{"k": 2}]
    path.write_text(path.read_text().replace("0.33", "0.34"))
    with pytest.raises(InputError, match=r"t\.csv: does not fit its JSON"):
        made.Rows.read(path)
