"""Files are whole or absent."""

import json
import resource

import pytest
import torch

from univ import files
from univ.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.csv"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "save",
    [
        lambda path: files.write_text(path, "x" * 10_000_000),
        lambda path: files.save_torch(path, torch.zeros(10_000_000)),
    ],
)
def test_a_full_disk_is_one_clear_error(tmp_path, save):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            save(tmp_path / "big")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_equal_values_make_equal_files(tmp_path):
    for name in ("a", "b"):
        files.save_torch(tmp_path / name, {"x": torch.arange(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        files.write_json(tmp_path / "file" / "args.json", {})


def test_json_and_hash(tmp_path):
    files.write_json(tmp_path / "a.json", {"path": tmp_path, "k": 3})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": str(tmp_path), "k": 3}
    files.write_text(tmp_path / "abc", "abc")
    # FIPS 180-2, appendix B.1
    assert files.file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
