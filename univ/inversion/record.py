"""What lies beside a file of inverted images: how near each came to its target (CSV), settings (JSON), samples (PNG).

The CSV has one row per image and the columns of `Row`; it is written and read here. An inversion has converged if it is
nearer to its target than every other natural image that was looked at (`null_distance`, see `inversion.null`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from univ import files
from univ.errors import InputError
from univ.files import schemas
from univ.inversion.images import to_uint8
from univ.inversion.optimise import Inverted

_Index = Annotated[int, Field(ge=0, lt=1 << 63)]
_Label = Annotated[int, Field(ge=-1, lt=1 << 63)]


class Row(schemas.Schema):
    """A row of the CSV. Indices count the images of the data set; a label that nobody knows is -1."""

    target_index: _Index = 0
    seed_index: _Index = 0
    target_label: _Label = -1
    seed_label: _Label = -1
    start_distance: float = 0.0
    final_distance: float = 0.0
    best_iteration: int = 0
    null_distance: float = math.nan
    converged: int = 0


COLUMNS = tuple(Row.model_fields)


def table(targets: Tensor, seeds: Tensor, labels: Tensor, inverted: Inverted, null: Tensor) -> str:
    """The CSV's text.

    Args:
        targets, seeds: (n,) indices of the images.
        labels: (N,) of the whole data set.
        null: (n,) relative distance of the nearest other natural image to each target.
    """
    distances = ([f"{x:.6g}" for x in row.tolist()] for row in (inverted.start_distance, inverted.final_distance))
    integers = (row.tolist() for row in (targets, seeds, labels[targets], labels[seeds]))
    nulls = [f"{x:.6g}" for x in null.tolist()], (inverted.final_distance < null).int().tolist()
    rows = zip(*integers, *distances, inverted.best_iteration.tolist(), *nulls)
    return "".join(f"{','.join(map(str, row))}\n" for row in (COLUMNS, *rows))


def read_column(path: Path, column: str) -> Tensor:
    """(n,) int64, a column of integers such as target_label.

    Raises:
        InputError: there is no such file, or it is no such table.
    """
    try:
        values = schemas.read_table(path, Row, [column])[column]
    except FileNotFoundError as error:
        raise InputError(f"there is no report {path} beside the images: inversion.py writes it") from error
    return torch.tensor(values.to_list(), dtype=torch.int64)


def read_origin(path: Path) -> dict[str, Any]:
    """The JSON beside a file of inverted images; empty where there is none.

    Raises:
        InputError: it is damaged, or describes other images, or another CSV, than lie beside it.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    origin = schemas.read_json(beside, schemas.InversionRecord).model_dump(exclude_unset=True)
    for file, key in ((path, "images_sha256"), (path.with_suffix(".csv"), "csv_sha256")):
        if key in origin and file.is_file() and files.content_hash(file) != origin[key]:
            raise InputError(f"{file} is not the file that {beside.name} describes: restore it, or invert anew")
    return origin


def contact_sheet(rows: Mapping[str, Tensor], captions: Sequence[str], *, side: int = 112) -> Image.Image:
    """A picture of several rows of images, each row with its name, each column with its caption.

    Args:
        rows: name -> (k, 3, H, W) images in [0, 1].
        captions: k texts.
        side: width and height of an image on the sheet, pixels; small images are enlarged without smoothing.
    """
    gap, margin, top = 4, 76, 20
    sheet = Image.new("RGB", (margin + len(captions) * (side + gap), top + len(rows) * (side + gap)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, caption in enumerate(captions):
        draw.text((margin + column * (side + gap), 3), caption, fill="black", font=font)
    for row, (name, images) in enumerate(rows.items()):
        y = top + row * (side + gap)
        draw.text((4, y + side // 2 - 7), name, fill="black", font=font)
        for column, pixels in enumerate(to_uint8(images)):
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
            method = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((side, side), method), (margin + column * (side + gap), y))
    return sheet
