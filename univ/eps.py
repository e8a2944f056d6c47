"""Names of adversarial radii: eps0, eps025, eps05, eps1, eps3 <-> 0, 0.25, 0.5, 1, 3."""

import re

from univ.errors import InputError

EPS = ("eps0", "eps025", "eps05", "eps1", "eps2", "eps3")
"""The radii the scripts accept by name; eps2 is used on digits only."""


def eps_value(name: str) -> float:
    """The L2 radius, in pixel units of [0, 1] images, that a name such as `eps025` stands for.

    A leading zero stands for "zero point": eps025 is 0.25, eps3 is 3, eps0 is 0.

    Raises:
        InputError: `name` is not "eps" followed by digits.
    """
    digits = re.fullmatch(r"eps(\d+)", name)
    if digits is None:
        raise InputError(f"{name!r} is not a radius: expected a name such as {', '.join(EPS)}")
    text = digits.group(1)
    return float(f"0.{text[1:]}") if text.startswith("0") and len(text) > 1 else float(text)


def eps_name(value: float) -> str:
    """The inverse of `eps_value`: 0.25 -> eps025, 3 -> eps3.

    Raises:
        InputError: the value has no such name (negative, or above 1 with decimals).
    """
    text = f"{value:g}".replace(".", "")
    name = f"eps{text}"
    if value < 0 or not text.isdigit() or eps_value(name) != value:
        raise InputError(f"a radius of {value:g} has no folder name: use an integer or a value in [0, 1)")
    return name


def eps_of_path(path: object) -> str | None:
    """The name of the radius that a path names last, or None.

    data/cnns/cifar10/eps1/resnet18.pt -> eps1, resnet18_eps025.pt and resnet18_l2_eps0.25.ckpt -> eps025
    """
    words = re.findall(r"(?:^|(?<=[/\\_.-]))eps(\d+(?:\.\d+)?)(?=$|[/\\_.-])", str(path))
    if not words:
        return None
    try:
        return eps_name(float(words[-1])) if "." in words[-1] else f"eps{words[-1]}"
    except InputError:  # a radius such as 1.5
        return None
