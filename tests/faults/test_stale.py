"""Make a result, change something it was made from, run again: it is made anew, or refused in one line."""

import json
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
import pytest
import torch
from image_files import KINDS, encoded_image, write_legacy_lmdb

import inversion
import rep
import subgroup_sim
from univ import results
from univ.data import lmdb as image_lmdb
from univ.data import open_images
from univ.data.imagenet import ImageFiles
from univ.data.images import TensorImages
from univ.data.indices import read_indices, write_indices
from univ.data.lmdb import ImageFolderLMDB, write_lmdb
from univ.data.selection import select
from univ.errors import InputError
from univ.files import disk as files
from univ.inversion.images import open_inverted
from univ.models import build_model, checkpoints
from univ.reps.cache import RepCache
from univ.results import made

ARCHS = ["vgg11", "resnet10"]
QUIET = ["--quiet", "--device", "cpu", "--workers", "0"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with two untrained networks of two radii, and pretended inverted images of one."""
    monkeypatch.chdir(tmp_path)
    pixels = torch.stack([open_images("digits")[i][0] for i in range(40)])
    for number, (eps, arch) in enumerate((eps, arch) for eps in ("eps0", "eps1") for arch in ARCHS):
        write_model(eps, arch, seed=number)
        files.save_torch(Path(f"data/digits/inverted/{arch}_{eps}.pt"), pixels.roll(number, 0))
    return tmp_path


def write_model(eps, arch, seed):
    model = build_model(arch, "digits", seed=seed)
    checkpoints.save_checkpoint(Path(f"data/cnns/digits/{eps}/{arch}.pt"), model, epoch=1)


def fill_cache(eps, *more):
    words = ["-d", "digits", "-m", "digits", "-o", eps, "--model-names", *ARCHS, "--cache-dir", "cache"]
    rep.main([*words, "--no-comparisons", *QUIET, *more])


# --- images ---------------------------------------------------------------------------------------------------------

N = 150
ENCODED = [encoded_image(KINDS[i % len(KINDS)], seed=i, size=(9, 9)) for i in range(N)]
LABELS = [i // 40 for i in range(N)]
NOT_SAMPLED = 1  # of 150 images, 64 evenly spaced ones decided once


def changed(values):
    return [values[2] if i == NOT_SAMPLED else value for i, value in enumerate(values)]


def stored_as_lmdb(folder, encoded, labels):
    write_lmdb(folder / "x.lmdb", zip(encoded, labels), list("abcd"))
    return lambda: ImageFolderLMDB(folder / "x.lmdb", name="x")


def stored_as_old_lmdb(folder, encoded, labels):
    (folder / "x.lmdb").unlink(missing_ok=True)
    write_legacy_lmdb(folder / "x.lmdb", [([image], np.array(label)) for image, label in zip(encoded, labels)])
    return lambda: ImageFolderLMDB(folder / "x.lmdb", name="x")


def stored_as_files(folder, encoded, labels):
    for number, image in enumerate(encoded):
        (folder / f"{number:03d}.jpg").write_bytes(image)
    (folder / "labels.csv").write_text("\n".join(map(str, labels)))
    return lambda: ImageFiles(folder, folder / "labels.csv", name="x")


def stored_inverted(folder, encoded, labels):
    pixels = torch.stack([torch.full((3, 4, 4), len(image) / 10_000) for image in encoded])
    files.save_torch(folder / "x.pt", pixels)
    return lambda: open_inverted(folder / "x.pt", torch.tensor(labels))


def in_memory(folder, encoded, labels):
    pixels = torch.tensor([len(image) for image in encoded]).to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return lambda: TensorImages(pixels, torch.tensor(labels), name="x")


WAYS = [stored_as_lmdb, stored_as_old_lmdb, stored_as_files, stored_inverted, in_memory]


@pytest.mark.parametrize("store", WAYS)
def test_a_fingerprint_sees_every_image_and_every_label(tmp_path, store):
    before = store(tmp_path, ENCODED, LABELS)().fingerprint
    assert store(tmp_path, ENCODED, LABELS)().fingerprint == before
    assert store(tmp_path, ENCODED, changed([5, 5, *LABELS[2:]]))().fingerprint != before
    assert store(tmp_path, changed(ENCODED), LABELS)().fingerprint != before
    assert store(tmp_path, ENCODED, LABELS)().fingerprint == before


@pytest.mark.parametrize("store", WAYS[:4])
def test_the_second_fingerprint_reads_no_image(tmp_path, store, monkeypatch):
    images = store(tmp_path, ENCODED, LABELS)
    monkeypatch.setattr(files.time, "time_ns", lambda clock=files.time.time_ns: clock() + 10**10)
    before = images().fingerprint
    for kind in (ImageFolderLMDB, ImageFiles):
        monkeypatch.setattr(kind, "record", None)
    monkeypatch.setattr(files, "file_hash", None)
    assert images().fingerprint == before


def test_an_lmdb_replaced_while_it_is_open_is_refused(tmp_path):
    images = stored_as_lmdb(tmp_path, ENCODED, LABELS)()
    assert len(images) == N
    stored_as_lmdb(tmp_path, ENCODED[1:], LABELS[1:])
    with pytest.raises(InputError, match="was replaced while it was in use"):
        _ = images.fingerprint


def test_labels_that_an_lmdb_holds_together_count_too(tmp_path):
    images = stored_as_lmdb(tmp_path, ENCODED, LABELS)
    before = images().fingerprint
    environment = lmdb.open(str(tmp_path / "x.lmdb"), subdir=False)
    with environment.begin(write=True) as transaction:
        transaction.put(image_lmdb.LABELS_KEY, image_lmdb.encode_labels(changed(LABELS[::-1])))
    environment.close()
    assert images().fingerprint != before


def test_selections_are_told_apart(tmp_path):
    images = stored_as_lmdb(tmp_path, ENCODED, LABELS)()
    chosen = [select(images, torch.tensor(rows)).fingerprint for rows in ([0, 1], [1, 0], [0, 2], [0, 1])]
    assert len(set(chosen)) == 3 and chosen[0] == chosen[3]


# --- tables that grow -----------------------------------------------------------------------------------------------

TABLE = Path("results/subgroups/digits/repsim_subgroups.csv")


def subgroups(*more, eps=("eps0",)):
    words = ["--cache-dir", "cache", "-d", "digits", "--eps", *eps, "--measures", "cka", *QUIET]
    subgroup_sim.main([*words, "--no-size-matched", *more])  # two such models agree on few images
    return pd.read_csv(TABLE)


def test_rows_of_other_radii_images_and_procedures_stay(place, monkeypatch):
    for eps in ("eps0", "eps1"):
        fill_cache(eps)
    fill_cache("eps0", "-i", "1")
    first = subgroups()
    both = subgroups(eps=["eps1"])
    assert len(first) == 2 and sorted(both["eps"]) == [0, 0, 1, 1]
    inverted = subgroups("--inv", "1")
    assert inverted["input"].value_counts().to_dict() == {"standard": 4, "inverted": 4}
    every = subgroups("--size-matched", eps=["eps0", "eps1"])
    assert len(every) == 12
    pd.testing.assert_frame_equal(every.iloc[:2], first)

    # nothing is computed twice
    monkeypatch.setattr("univ.compare.subgroup_rows.subgroups", None)
    before = TABLE.read_bytes()
    subgroups(eps=["eps0", "eps1"])
    subgroups("--inv", "1")
    subgroups("--size-matched")
    assert TABLE.read_bytes() == before

    # readers see one procedure for each kind of images, the one added last
    table = results.load_subgroups(Path("results"))
    assert set(table["input"]) == {"standard", "inverted"} and len(table) == 4 + 4
    assert table.loc[table["input"] == "standard", "spread"].notna().any() == every["spread"].notna().any()


def test_rows_of_a_changed_checkpoint_or_precision_are_computed_anew(place):
    for eps in ("eps0", "eps1"):
        fill_cache(eps)
    before = subgroups(eps=["eps0", "eps1"])
    write_model("eps0", "vgg11", seed=9)
    fill_cache("eps0")
    after = subgroups(eps=["eps0", "eps1"])
    assert len(after) == len(before)
    changed, kept = (table.set_index("eps")["score"].fillna(-1) for table in (after, before))
    assert changed[1].tolist() == kept[1].tolist() and changed[0].tolist() != kept[0].tolist()
    fill_cache("eps1", "--precision", "bf16")
    precise = subgroups(eps=["eps1"])
    assert len(precise) == len(before) and set(precise["made"]) != set(after["made"])


@pytest.mark.parametrize("kind", ["output", "reps"])
def test_a_cache_that_mixes_checkpoints_or_precisions_is_refused(place, kind):
    fill_cache("eps0")
    old = Path(f"cache/{kind}__digits_eps0_i0").read_bytes()
    write_model("eps0", "vgg11", seed=9)
    fill_cache("eps0")
    Path(f"cache/{kind}__digits_eps0_i0").write_bytes(old)
    with pytest.raises(InputError, match=r"representations and the outputs of vgg11 .* differ in checkpoint"):
        subgroups()
    Path("cache/output__digits_eps0_i0").unlink()
    Path("cache/reps__digits_eps0_i0").unlink()
    fill_cache("eps0")
    fill_cache("eps0", "--precision", "bf16", "--model-names", "vgg11")
    with pytest.raises(InputError, match=r"were made in .* --precision"):
        subgroups()


def test_a_table_with_one_record_for_all_rows_is_read_and_keeps_its_other_rows(place):
    """As the program wrote it before rows had settings of their own: those do not name the checkpoints."""
    fill_cache("eps0")
    old = subgroups().drop(columns=["made", "input"])
    old = pd.concat([old, old.assign(eps=3.0)])
    procedure = {"function": "euc", "published": False, "size_matched": False, "seed": 0}
    TABLE.with_suffix(".json").unlink()
    made.write_csv(
        TABLE, old.to_csv(index=False), {"dataset": "digits", "input": "standard", **procedure, "inputs": {}}
    )
    table = subgroups()
    assert sorted(table["eps"]) == [0, 0, 3, 3] and table["made"].nunique() == 2
    assert len(results.load_subgroups(TABLE)) == 4


def test_published_rows_count_as_done_and_an_edited_table_is_not_thrown_away(place, monkeypatch):
    fill_cache("eps0")
    table = subgroups()
    record = json.loads(TABLE.with_suffix(".json").read_text())
    TABLE.with_suffix(".json").unlink()
    table.drop(columns=["made", "input", "dataset"]).to_csv(TABLE, index=False)
    before = TABLE.read_bytes()
    subgroups()
    assert TABLE.read_bytes() == before
    TABLE.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"repsim_subgroups\.csv: does not fit its JSON"):
        subgroups()


def test_a_run_killed_between_json_and_csv_loses_no_row(place, monkeypatch):
    for eps in ("eps0", "eps1"):
        fill_cache(eps)
    first = subgroups()

    write_text = made.files.write_text

    def killed_at_the_csv(path, text):
        if path == TABLE:
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(made.files, "write_text", killed_at_the_csv)
        subgroups(eps=["eps1"])
    both = subgroups(eps=["eps1"])
    assert sorted(both["eps"]) == [0, 0, 1, 1]
    pd.testing.assert_frame_equal(both.iloc[:2], first)


# --- inverted images ------------------------------------------------------------------------------------------------

INVERTED = Path("inverted")


def invert(*more, arch="vgg11", eps="eps0"):
    words = ["-d", "digits", "-m", arch, "-e", eps, "--model-dir", f"data/cnns/digits/{eps}", "-i", str(INVERTED)]
    inversion.main([*words, "-n", "70", "--iterations", "1", "--step-size", "1", *QUIET, *more])


def compare_inverted(*more, folder=INVERTED):
    words = ["-d", "digits", "-m", "digits", "-o", "eps0", "--model-names", *ARCHS, "-i", "1", "-r", "cka"]
    rep.main([*words, "--inverted-imgs-dir", str(folder), *QUIET, *more])
    return pd.read_csv("results/cka/inverted/10000/digits/cka_eps0_0.csv", index_col=0)


def other_checkpoint():
    write_model("eps0", "vgg11", seed=9)


def other_targets():
    path = INVERTED / "target_indices.csv"
    targets = read_indices(path)
    path.unlink()
    write_indices(path, targets.roll(1))


def other_images():
    flip(INVERTED / "vgg11_eps0.pt", 0.5)


def other_report():
    report = INVERTED / "vgg11_eps0.csv"
    lines = report.read_text().splitlines(keepends=True)
    report.write_text("".join([lines[0], lines[2], *lines[2:]]))


def images_of_another_file():
    for suffix in ("pt", "csv", "json"):
        (INVERTED / f"vgg11_eps0.{suffix}").write_bytes((INVERTED / f"resnet10_eps0.{suffix}").read_bytes())


@pytest.mark.parametrize(
    ("change", "inverting", "comparing"),
    [
        (other_checkpoint, "made otherwise .checkpoint was .*--overwrite", "made through another checkpoint"),
        (other_targets, "made otherwise .indices was .*--overwrite", None),
        (other_images, "is not the file that vgg11_eps0.json describes", "is not the file that .* describes"),
        (other_report, "is not the file that vgg11_eps0.json describes", "is not the file that .* describes"),
        (images_of_another_file, "made otherwise .*arch was resnet10, now vgg11", "made through another checkpoint"),
    ],
)
def test_inverted_images_of_something_else_are_refused(place, change, inverting, comparing):
    for arch in ARCHS:
        invert(arch=arch)
    invert()  # nothing to do
    compare_inverted()
    change()
    with pytest.raises(InputError, match=inverting):
        invert()
    if comparing is not None:
        with pytest.raises(InputError, match=comparing):
            compare_inverted()
    invert("--overwrite")
    compare_inverted()


def test_index_files_that_do_not_belong_to_published_images_are_refused(place):
    invert()
    (INVERTED / "vgg11_eps0.json").unlink()
    invert("--iterations", "3")  # nobody knows how they were made
    other_targets()
    with pytest.raises(InputError, match=r"target_indices.csv holds other indices than .*vgg11_eps0.csv"):
        invert()


def test_inverted_images_replaced_between_evenly_spaced_ones_are_compared_anew(place):
    folder = Path("data/digits/inverted")
    pixels = torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    files.save_torch(folder / "vgg11_eps0.pt", pixels)
    before = compare_inverted(folder=folder)
    pixels[NOT_SAMPLED] = 0
    files.save_torch(folder / "vgg11_eps0.pt", pixels)
    after = compare_inverted(folder=folder)
    assert after["vgg11"].tolist() != before["vgg11"].tolist()


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path, share):
    """Change one byte at this share of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.4, 0.99])
def test_a_damaged_cache_is_refused_by_all_who_read_it(place, share):
    fill_cache("eps0")
    flip(Path("cache/reps__digits_eps0_i0"), share)
    for command in (lambda: fill_cache("eps0"), subgroups):
        with pytest.raises(InputError, match=r"reps__digits_eps0_i0 is damaged: .* checksum"):
            command()


def test_a_later_run_completes_the_cache_of_a_killed_one(place, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(RepCache, "finish", lambda self: None)
        fill_cache("eps0")
    assert not Path("cache/reps__digits_eps0_i0").exists()
    assert len(subgroups()) == 2  # a reader finds the parts too
    Path("cache/reps__digits_eps0_i0").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(RepCache, "finish", lambda self: None)
        fill_cache("eps0")
    fill_cache("eps0")
    assert Path("cache/reps__digits_eps0_i0").exists() and not list(Path("cache").glob(".parts*"))
