"""Inverted-image files, in every published form, and the CSV beside them; what is no image is refused."""

import pickle

import numpy as np
import pytest
import torch
from image_files import Dangerous

from univ.data.loaders import Batches
from univ.errors import InputError
from univ.inversion import Inverted, null, record
from univ.inversion.images import find_inverted, open_inverted, pool_inverted, to_uint8


@pytest.fixture
def images():
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def load(path):
    return open_inverted(path).floats(slice(None))


@pytest.mark.parametrize("as_uint8", [False, True])
@pytest.mark.parametrize("form", ["npy", "npy-big-endian", "pt", "pt-before-1.6", "pt-half"])
def test_published_forms(tmp_path, images, form, as_uint8):
    stored = to_uint8(images) if as_uint8 else images
    stored = stored.half() if form == "pt-half" and not as_uint8 else stored
    path = tmp_path / f"x.{form.partition('-')[0]}"
    if form.startswith("npy"):
        array = stored.numpy()
        np.save(path, array.astype(array.dtype.newbyteorder(">")) if form == "npy-big-endian" else array)
    else:
        torch.save(stored, path, _use_new_zipfile_serialization=form != "pt-before-1.6")
    expected = stored.float() / 255 if as_uint8 else stored.float()
    loaded = load(path)
    assert loaded.dtype == torch.float32 and torch.equal(loaded, expected)


def test_labels_are_those_of_the_targets(tmp_path, images):
    torch.save(images, tmp_path / "x.pt")
    labels = torch.arange(7) + 10
    opened = open_inverted(tmp_path / "x.pt", labels)
    pixels, given_labels = next(iter(Batches(opened, 7, device="cpu")))
    assert torch.equal(pixels, images) and torch.equal(given_labels, labels)
    assert open_inverted(tmp_path / "x.pt").labels.tolist() == [-1] * 7
    with pytest.raises(InputError, match="7 images, but there are 6 target indices"):
        open_inverted(tmp_path / "x.pt", labels[:6])


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (torch.rand(3, 8, 8), r"shape \(3, 8, 8\)"),
        (torch.rand(2, 8, 8, 3), "shape"),
        (torch.rand(0, 3, 8, 8), "shape"),
        (torch.rand(2, 3, 8, 8) * 255, r"from .* to 2\d\d"),
        (torch.full((2, 3, 8, 8), torch.nan), "nan"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        ({"images": torch.rand(2, 3, 8, 8)}, "holds a dict"),
    ],
    ids=["3-d", "channels-last", "none", "0-to-255", "nan", "int64", "dict"],
)
def test_what_is_no_set_of_images_is_refused(tmp_path, stored, message):
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / "x.pt")
    assert "x.pt" in str(error.value)


@pytest.mark.parametrize("form", ["zip", "before-1.6", "objects.npy", "pickle.npy"])
def test_nothing_in_a_file_runs(tmp_path, form):
    path, dangerous = tmp_path / ("x.npy" if form.endswith("npy") else "x.pt"), Dangerous(tmp_path / "ran")
    if form == "objects.npy":
        np.save(path, np.array([dangerous], dtype=object))
    elif form == "pickle.npy":
        path.write_bytes(pickle.dumps(dangerous))
    else:
        torch.save(dangerous, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match=path.name):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_find_names_what_is_there(tmp_path, images):
    torch.save(images, tmp_path / "vgg16_eps3.pt")
    np.save(tmp_path / "vgg16_eps0.npy", images.numpy())
    assert find_inverted(tmp_path, "vgg16", "eps3").suffix == ".pt"
    assert find_inverted(tmp_path, "vgg16", "eps0").suffix == ".npy"
    with pytest.raises(FileNotFoundError, match=r"resnet18_eps3.pt .* vgg16_eps0.npy, vgg16_eps3.pt"):
        find_inverted(tmp_path, "resnet18", "eps3")
    with pytest.raises(FileNotFoundError, match="--inverted-imgs-dir"):
        find_inverted(tmp_path / "none", "vgg16", "eps3")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize("as_uint8", [False, True])
def test_pooling_draws_over_all_models(tmp_path, as_uint8):
    # every pixel of image i of model m is 10 m + i (in 255ths)
    paths = {}
    for model in range(3):
        values = (10 * model + torch.arange(7))[:, None, None, None].expand(7, 3, 2, 2) / 255
        paths[f"model{model}"] = tmp_path / f"model{model}_eps3.pt"
        torch.save(to_uint8(values) if as_uint8 else values, paths[f"model{model}"])
    pooled = pool_inverted(paths, 12, seed=0, labels=torch.arange(7) + 100)
    values = (pooled.floats(slice(None))[:, 0, 0, 0] * 255).round().long()
    assert len(values.unique()) == 12 and len((values // 10).unique()) == 3
    assert torch.equal(values % 10 + 100, pooled.labels)
    same, other = (pool_inverted(paths, 12, seed=seed, labels=torch.arange(7) + 100) for seed in (0, 1))
    assert pooled.fingerprint == same.fingerprint != other.fingerprint
    assert len(pool_inverted(paths, None, seed=0)) == 21
    with pytest.raises(InputError, match="22 of 21"):
        pool_inverted(paths, 22, seed=0)
    torch.save(torch.rand(6, 3, 2, 2), tmp_path / "other.pt")
    with pytest.raises(InputError, match="different shapes"):
        pool_inverted({**paths, "other": tmp_path / "other.pt"}, 3, seed=0)


# --- what lies beside the images ------------------------------------------------------------------------------------


def test_the_csv_has_a_row_per_image_and_is_read_back(tmp_path):
    labels, values = torch.tensor([7, 8, 9, 5]), torch.tensor([10, 11]) / 255
    inverted = Inverted(torch.zeros(2, 3, 2, 2), values, values * 2, torch.tensor([10, 11]))
    text = record.table(torch.tensor([2, 0]), torch.tensor([1, 3]), labels, inverted, torch.tensor([0.1, 0.05]))
    assert text.splitlines() == [
        "target_index,seed_index,target_label,seed_label,start_distance,final_distance,best_iteration,null_distance,converged",
        "2,1,9,8,0.0392157,0.0784314,10,0.1,1",
        "0,3,7,5,0.0431373,0.0862745,11,0.05,0",
    ]
    (tmp_path / "x.csv").write_text(text)
    assert record.read_column(tmp_path / "x.csv", "target_label").tolist() == [9, 7]
    (tmp_path / "x.csv").write_text("target_index,target_label\n5,3\n2,0\n")  # written by other programs
    assert record.read_column(tmp_path / "x.csv", "target_index").tolist() == [5, 2]


def test_the_nearest_other_image_by_hand():
    reps = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 3.0], [0.0, 4.0]])  # of images 10, 11, 12, 13
    indices = torch.tensor([10, 11, 12, 13])
    found = null.nearest(reps[:2], indices[:2], reps, indices)
    assert found.tolist() == pytest.approx([1 / 5, 4])  # |r(t)| is 5; of a representation of 0 the distance itself
    assert null.nearest(reps[:1], indices[:1], reps[:1], indices[:1]).isnan().all()
    assert null.chosen(torch.tensor([5, 2]), torch.tensor([2, 7])).tolist() == [2, 5, 7]
    assert len(null.chosen(torch.arange(3000), torch.arange(10))) == null.MOST


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "target_label\nthree\n", None])
def test_a_foreign_or_missing_csv_is_named(tmp_path, text):
    path = tmp_path / "vgg11_eps1.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"vgg11_eps1\.csv.*(target_label|not a CSV|beside the images)"):
        record.read_column(path, "target_label")


def test_contact_sheet_shows_the_images_in_their_places():
    red, blue = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    red[:, 0], blue[1, 2] = 1, 1
    sheet = record.contact_sheet({"seed": red, "target": blue}, ["0.1", "0.2"], side=20)
    assert sheet.size == (76 + 2 * 24, 20 + 2 * 24)
    assert sheet.getpixel((76 + 10, 20 + 10)) == (255, 0, 0)
    assert sheet.getpixel((76 + 10, 20 + 24 + 10)) == (0, 0, 0)
    assert sheet.getpixel((76 + 24 + 10, 20 + 24 + 10)) == (0, 0, 255)
