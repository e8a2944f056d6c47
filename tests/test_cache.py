"""The cache of representations: round trip, identity, resuming, constant memory."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from univ.errors import InputError
from univ.files import tensors
from univ.reps.cache import RepCache, read_cache
from univ.reps.extract import Extraction
from univ.reps.identity import Identity, Inputs, hash_indices, require_same

INPUTS = Inputs("digits", "f00d", "as is", "1234", 5)
IDENTITY = Identity(INPUTS, "vgg11", "head", "abcd")


@pytest.fixture
def extraction():
    generator = torch.Generator().manual_seed(0)
    return Extraction(torch.randn(5, 7, generator=generator), torch.randn(5, 3, generator=generator))


def test_round_trip_through_parts_and_the_finished_file(tmp_path, extraction):
    store = RepCache(tmp_path, "digits", "eps1", inverted=False)
    store.put("vgg11", IDENTITY, extraction)
    for _ in range(2):  # from the part, then from the finished files
        found = store.get("vgg11", IDENTITY)
        assert torch.equal(found.reps, extraction.reps) and torch.equal(found.logits, extraction.logits)
        store.finish()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "output__digits_eps1_i0",
        "reps__digits_eps1_i0",
    ]
    # the file is plain safetensors: the library itself reads it
    assert torch.equal(load_file(tmp_path / "reps__digits_eps1_i0")["vgg11"], extraction.reps)


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, checkpoint="other"),
        replace(IDENTITY, node="layer4"),
        replace(IDENTITY, precision="bf16"),
        replace(IDENTITY, inputs=replace(INPUTS, indices="4321")),
    ],
)
def test_another_identity_is_not_served(tmp_path, extraction, other):
    store = RepCache(tmp_path, "digits", "eps1", inverted=False)
    store.put("vgg11", IDENTITY, extraction)
    assert store.get("vgg11", other) is None
    store.finish()
    assert store.get("vgg11", other) is None


def test_finishing_keeps_the_other_models(tmp_path, extraction):
    store = RepCache(tmp_path, "digits", "eps1", inverted=True)
    for key in ("vgg11/vgg11", "vgg11/resnet10"):
        store.put(key, IDENTITY, extraction)
        store.finish()
    cached = read_cache(tmp_path, "output", "digits", "eps1", inverted=True)
    assert set(cached.tensors) == {"vgg11/vgg11", "vgg11/resnet10"}
    assert all(torch.equal(tensor, extraction.logits) for tensor in cached.tensors.values())
    assert cached.identities["vgg11/resnet10"] == IDENTITY


def test_different_inputs_are_not_compared():
    require_same(INPUTS, INPUTS, "a and b")
    with pytest.raises(InputError, match=r"a and b .* differ in fingerprint \(f00d and beef\), n \(5 and 6\)"):
        require_same(INPUTS, replace(INPUTS, fingerprint="beef", n=6), "a and b")


def test_damaged_and_missing_caches_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--no-comparisons"):
        read_cache(tmp_path, "reps", "digits", "eps1")
    (tmp_path / "reps__digits_eps1_i0").write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="damaged"):
        read_cache(tmp_path, "reps", "digits", "eps1")


def test_tensors_larger_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_CHUNK_BYTES", 10)
    written = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(6, dtype=torch.float16)[::2]}
    tensors.write_tensors(tmp_path / "x", written, {"k": "v"})
    read = tensors.TensorFile(tmp_path / "x")
    assert read.metadata == {"k": "v"}
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())


def test_order_matters_to_the_hash_of_indices():
    assert hash_indices(torch.tensor([0, 1])) != hash_indices(torch.tensor([1, 0]))
    assert hash_indices(torch.tensor([0, 1])) == hash_indices(torch.tensor([0, 1], dtype=torch.int32))
