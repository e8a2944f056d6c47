"""Inverted-image files: what is written is read, in every published form; what is no image is refused."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from univ.data.loaders import batches
from univ.errors import InputError
from univ.inversion.images import find_inverted, load_inverted, open_inverted, pool_inverted, save_inverted

settings.register_profile("univ", deadline=None)  # a busy machine is no failure
settings.load_profile("univ")


@pytest.fixture
def images():
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_float_files_keep_every_bit(tmp_path, images):
    save_inverted(tmp_path / "resnet18_eps3.pt", images)
    assert torch.equal(load_inverted(tmp_path / "resnet18_eps3.pt"), images)
    assert torch.load(tmp_path / "resnet18_eps3.pt", weights_only=True).dtype == torch.float32


def test_8_bit_files_are_rounded(tmp_path, images):
    path = tmp_path / "x_eps0.pt"
    save_inverted(path, images, as_uint8=True)
    assert torch.load(path, weights_only=True).dtype == torch.uint8
    loaded = load_inverted(path)
    assert (loaded - images).abs().max() <= 0.5 / 255 + 1e-7
    assert (loaded - images).mean().abs() < 0.1 / 255  # truncation would be 0.5 / 255 too dark


@pytest.mark.parametrize("as_uint8", [False, True])
@pytest.mark.parametrize("form", ["npy", "npy-big-endian", "pt-before-1.6", "pt-half"])
def test_published_forms(tmp_path, images, form, as_uint8):
    stored = (images * 255).round().to(torch.uint8) if as_uint8 else images
    stored = stored.half() if form == "pt-half" and not as_uint8 else stored
    path = tmp_path / f"x.{form.partition('-')[0]}"
    if form.startswith("npy"):
        array = stored.numpy()
        np.save(path, array.astype(array.dtype.newbyteorder(">")) if form == "npy-big-endian" else array)
    else:
        torch.save(stored, path, _use_new_zipfile_serialization=form != "pt-before-1.6")
    expected = stored.float() / 255 if as_uint8 else stored.float()
    loaded = load_inverted(path)
    assert loaded.dtype == torch.float32 and torch.equal(loaded, expected)


def test_labels_are_those_of_the_targets(tmp_path, images):
    save_inverted(tmp_path / "x.pt", images)
    labels = torch.arange(7) + 10
    opened = open_inverted(tmp_path / "x.pt", labels)
    pixels, given_labels = next(iter(batches(opened, 7, device="cpu")))
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
        load_inverted(tmp_path / "x.pt")
    assert "x.pt" in str(error.value)


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pt_file_runs(tmp_path, zipped):
    torch.save(Dangerous(tmp_path / "ran"), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"x.pt"):
        load_inverted(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", [lambda path, value: np.save(path, np.array([value], dtype=object)), None])
def test_nothing_in_a_npy_file_runs(tmp_path, write):
    path = tmp_path / "x.npy"
    if write is None:
        path.write_bytes(pickle.dumps(Dangerous(tmp_path / "ran")))
    else:
        write(path, Dangerous(tmp_path / "ran"))
    with pytest.raises(InputError, match=r"x.npy"):
        load_inverted(path)
    assert not (tmp_path / "ran").exists()


@given(st.data())
def test_damaged_files_are_refused_or_read_as_images(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from(["pt", "npy"]))
    path = folder / f"x.{suffix}"
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    torch.save(pixels, path) if suffix == "pt" else np.save(path, pixels.numpy())
    contents = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del contents[data.draw(st.integers(0, len(contents) - 1)) :]
    else:
        for position in data.draw(st.lists(st.integers(0, len(contents) - 1), min_size=1, max_size=4)):
            contents[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(contents)
    try:
        loaded = load_inverted(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert loaded.shape[1] == 3 and loaded.min() >= 0 and loaded.max() <= 1


def test_find_names_what_is_there(tmp_path, images):
    save_inverted(tmp_path / "vgg16_eps3.pt", images)
    np.save(tmp_path / "vgg16_eps0.npy", images.numpy())
    assert find_inverted(tmp_path, "vgg16", "eps3").suffix == ".pt"
    assert find_inverted(tmp_path, "vgg16", "eps0").suffix == ".npy"
    with pytest.raises(FileNotFoundError, match=r"resnet18_eps3.pt .* vgg16_eps0.npy, vgg16_eps3.pt"):
        find_inverted(tmp_path, "resnet18", "eps3")
    with pytest.raises(FileNotFoundError, match="--inverted-imgs-dir"):
        find_inverted(tmp_path / "none", "vgg16", "eps3")
    with pytest.raises(FileNotFoundError):
        load_inverted(tmp_path / "none.pt")


@pytest.mark.parametrize("as_uint8", [False, True])
def test_pooling_draws_over_all_models(tmp_path, as_uint8):
    # every pixel of image i of model m is 10 m + i (in 255ths)
    paths = {}
    for model in range(3):
        values = (10 * model + torch.arange(7))[:, None, None, None].expand(7, 3, 2, 2) / 255
        paths[f"model{model}"] = tmp_path / f"model{model}_eps3.pt"
        save_inverted(paths[f"model{model}"], values, as_uint8=as_uint8)
    pooled = pool_inverted(paths, 12, seed=0, labels=torch.arange(7) + 100)
    values = (pooled.floats(slice(None))[:, 0, 0, 0] * 255).round().long()
    assert len(values.unique()) == 12 and len((values // 10).unique()) == 3
    assert torch.equal(values % 10 + 100, pooled.labels)
    assert pooled.fingerprint == pool_inverted(paths, 12, seed=0, labels=torch.arange(7) + 100).fingerprint
    assert pooled.fingerprint != pool_inverted(paths, 12, seed=1, labels=torch.arange(7) + 100).fingerprint
    assert len(pool_inverted(paths, None, seed=0)) == 21
    with pytest.raises(InputError, match="22 of 21"):
        pool_inverted(paths, 22, seed=0)
    with pytest.raises(InputError, match="no model"):
        pool_inverted({}, 1, seed=0)
    save_inverted(tmp_path / "other.pt", torch.rand(6, 3, 2, 2))
    with pytest.raises(InputError, match="different shapes"):
        pool_inverted({**paths, "other": tmp_path / "other.pt"}, 3, seed=0)
