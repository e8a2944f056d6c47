"""Inversion: seed and target images, a model -> images that it represents like the targets."""

from univ.inversion.optimise import (
    CHECK_EVERY,
    FP16_LOSS_SCALE,
    MOMENTUM,
    REPORT_COLUMNS,
    WARM_UP,
    Inversion,
    Inverted,
    Inverter,
    Parts,
    contact_sheet,
    parts_folder,
    remove_left,
    report,
)

__all__ = [
    "CHECK_EVERY",
    "FP16_LOSS_SCALE",
    "MOMENTUM",
    "REPORT_COLUMNS",
    "WARM_UP",
    "Inversion",
    "Inverted",
    "Inverter",
    "Parts",
    "contact_sheet",
    "parts_folder",
    "remove_left",
    "report",
]
