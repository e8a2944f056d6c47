"""Radius names."""

import pytest

from univ.eps import EPS, eps_name, eps_of_path, eps_value
from univ.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [("eps0", 0), ("eps025", 0.25), ("eps05", 0.5), ("eps1", 1), ("eps3", 3), ("eps001", 0.01), ("eps10", 10)],
)
def test_names_and_values(name, value):
    assert eps_value(name) == value
    assert eps_name(value) == name


def test_every_accepted_name_comes_back():
    assert [eps_name(eps_value(name)) for name in EPS] == list(EPS)


@pytest.mark.parametrize("value", [1.5, -1])
def test_values_without_a_name(value):
    with pytest.raises(InputError, match="no folder name"):
        eps_name(value)


@pytest.mark.parametrize("name", ["3", "eps", "epsilon3", "eps-1"])
def test_names_without_a_value(name):
    with pytest.raises(InputError, match="not a radius"):
        eps_value(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/eps3/cnns/eps025/resnet18.pt", "eps025"),
        ("data/cnns/resnet18_eps3.pt", "eps3"),
        ("resnet18_l2_eps0.25.ckpt", "eps025"),
        ("resnet18_l2_eps1.5.ckpt", None),
        ("runs/steps3/resnet18.pt", None),
    ],
)
def test_radius_of_a_path(path, name):
    assert eps_of_path(path) == name
