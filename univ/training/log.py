"""An epoch's record -> the terminal, log.jsonl and TensorBoard."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger
from tqdm import tqdm

from univ import files, runs
from univ.errors import InputError
from univ.files import schemas


def open_log(folder: Path, epochs: int, *, after: int, tensorboard: bool) -> Callable[[Mapping[str, Any]], None]:
    """The function that logs a record, in a folder that keeps the records of an earlier run up to epoch `after`."""
    path = folder / "log.jsonl"
    earlier = read_log(path) if path.exists() and after else []
    files.write_text(path, "".join(f"{line}\n" for epoch, line in earlier if epoch <= after))
    add_scalar = runs.scalars(folder / "tensorboard", purge_step=after + 1) if tensorboard else None

    def write(record: Mapping[str, Any]) -> None:
        logger.info("{}", _line(record, epochs))
        files.append_text(path, json.dumps(record) + "\n")
        for name, value in record.items() if add_scalar is not None else ():
            if name not in ("epoch", "best"):
                add_scalar(name, value, record["epoch"])

    return write


def read_log(path: Path) -> list[tuple[int, str]]:
    """Epoch and line of every record of a log; a damaged line, such as the last one after a crash, is left out."""
    lines = []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        try:
            lines.append((schemas.parse_json(line, schemas.EpochRecord, f"{path}, line {number},").epoch, line))
        except InputError as error:
            logger.warning("left out: {}", error)
    return lines


def _line(record: Mapping[str, Any], epochs: int) -> str:
    """A record as one line for people."""
    parts = [f"train loss {record['train_loss']:.3f}, accuracy {record['train_accuracy']:.2f} %"]
    if "clean_accuracy" in record:
        robust = f", {record['robust_accuracy']:.2f} % robust" if "robust_accuracy" in record else ""
        best = " (best so far)" if record["best"] else ""
        parts.append(f"validation {record['clean_accuracy']:.2f} % clean{robust}{best}")
    parts += [f"lr {record['lr']:.2g}", f"{record['images_per_second']:,.0f} images/s"]
    if record["seconds_left"] > 0:
        parts.append(f"{tqdm.format_interval(record['seconds_left'])} left")
    return f"epoch {record['epoch']}/{epochs}: " + "; ".join(parts)
