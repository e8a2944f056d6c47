"""LMDB files of images: what is written is read, both formats alike, in every process; all else is a clear error."""

import io
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import KINDS, Dangerous, encoded_image, write_legacy_lmdb, write_raw_lmdb
from PIL import Image
from torchvision import transforms as T

from univ.data import lmdb as image_lmdb
from univ.data.images import decode_fast, decode_pillow
from univ.data.lmdb import ImageFolderLMDB, decode, decode_labels, encode, encode_labels, encode_meta, write_lmdb
from univ.data.loaders import Batches, TrainingBatches
from univ.data.transforms import ImageNetAugmentation, ResizeAndCrop
from univ.errors import InputError

settings.register_profile("univ", deadline=None)  # a busy machine is no failure
settings.load_profile("univ")

N = 21
LABELS = [index // 4 for index in range(N)]
IMAGES = [encoded_image(KINDS[index % len(KINDS)], seed=index) for index in range(N)]
TRANSFORM = ResizeAndCrop(36, 32)
ANY_LABEL = st.integers(0, 2**63 - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same images in our format and, once per protocol and container, in the older one."""
    root = tmp_path_factory.mktemp("lmdb")
    write_lmdb(root / "ours.lmdb", zip(IMAGES, LABELS), [f"class {i}" for i in range(6)])
    write_legacy_lmdb(root / "legacy.lmdb", [([image], np.array(label)) for image, label in zip(IMAGES, LABELS)])
    return root


def ours(folder, **options):
    return ImageFolderLMDB(folder / "ours.lmdb", TRANSFORM, name="test/val", **options)


def legacy(folder, **options):
    return ImageFolderLMDB(folder / "legacy.lmdb", TRANSFORM, name="test/val", **options)


# --- the codec -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), ANY_LABEL)
def test_codec_round_trip(image, label):
    record = encode(image, label)
    assert decode(record) == decode(memoryview(record)) == (image, label)


@given(st.binary(max_size=60), ANY_LABEL, st.data())
def test_codec_notices_every_change(image, label, data):
    record = bytearray(encode(image, label))
    change = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    if change == "flip":
        record[data.draw(st.integers(0, len(record) - 1))] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del record[data.draw(st.integers(0, len(record) - 1)) :]
    else:
        record += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(ValueError, match=r"checksum|does not begin"):
        decode(bytes(record))


@given(st.binary(max_size=80))
def test_codec_never_takes_noise_for_a_record(noise):
    for decoder in (decode, decode_labels):
        if decoder is decode_labels and noise == b"\0" * 4:
            continue  # the checksum of no labels
        with pytest.raises(ValueError):
            decoder(noise)


@given(st.lists(ANY_LABEL, max_size=20))
def test_labels_round_trip(labels):
    assert decode_labels(encode_labels(labels)).tolist() == labels


def test_codec_refuses_labels_that_do_not_fit():
    for label in (-1, 2**63):
        with pytest.raises(ValueError, match=str(label)):
            encode(b"", label)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_map_grows_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(image_lmdb, "FIRST_MAP_BYTES", 2**16)
    monkeypatch.setattr(image_lmdb, "COMMIT_BYTES", 2**15)
    records = [(bytes([label]) * 3000, label) for label in range(200)]
    assert write_lmdb(tmp_path / "x.lmdb", iter(records), ["a"]) == 200
    written = ImageFolderLMDB(tmp_path / "x.lmdb")
    assert [written.record(index) for index in range(200)] == records


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.lmdb"
    (tmp_path / ".x.lmdb.0.tmp").write_bytes(bytes(10_000))  # as a killed run leaves it
    write_lmdb(path, [(b"old", 1)], ["a", "b"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.lmdb"]

    def records():
        yield b"new", 0
        raise error

    with pytest.raises(error):
        write_lmdb(path, records(), ["a"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.lmdb"]
    assert ImageFolderLMDB(path).record(0) == (b"old", 1)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    def records():
        yield b"first", 0
        with pytest.raises(ValueError, match="being written by"):
            write_lmdb(tmp_path / "x.lmdb", [(b"second", 0)], ["a"])
        yield b"first again", 1

    assert write_lmdb(tmp_path / "x.lmdb", records(), ["a"]) == 2
    assert len(ImageFolderLMDB(tmp_path / "x.lmdb")) == 2


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_images", [ours, legacy])
def test_images_and_labels(folder, open_images):
    images = open_images(folder)
    assert len(images) == N and images.is_legacy == (open_images is legacy)
    assert images.labels.tolist() == LABELS and images.labels.dtype == torch.int64
    reference = T.Compose([T.Resize(36), T.CenterCrop(32), T.ToTensor()])
    for index, (encoded, label) in enumerate(zip(IMAGES, LABELS)):
        assert images.record(index) == (encoded, label)
        pixels, found = images[index]
        assert found == label and torch.equal(pixels, reference(Image.open(io.BytesIO(encoded)).convert("RGB")))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", [list, tuple], ids=["list", "tuple"])
@pytest.mark.parametrize(
    "label",
    [np.array(7), np.array([7]), np.int64(7), np.array([7], dtype=np.int32)],
    ids=["()", "(1,)", "scalar", "int32"],
)
def test_every_form_of_older_records(tmp_path, protocol, container, label):
    write_legacy_lmdb(tmp_path / "x.lmdb", [(container([IMAGES[0]]), label)] * 2, protocol)
    images = ImageFolderLMDB(tmp_path / "x.lmdb")
    assert images.record(1) == (IMAGES[0], 7) and images.labels.tolist() == [7, 7]


def test_older_records_of_numpy_1(tmp_path):
    """NumPy before 2 wrote its functions under numpy.core, which today's pickles do not show."""
    record = pickle.dumps(([IMAGES[0]], np.array([7])), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in record
    write_raw_lmdb(tmp_path / "x.lmdb", {b"0": record, b"__len__": pickle.dumps(1)})
    assert ImageFolderLMDB(tmp_path / "x.lmdb").record(0) == (IMAGES[0], 7)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_decoding_gives_the_same_pixels(kind):
    encoded = encoded_image(kind, seed=3)
    assert torch.equal(decode_fast(encoded), T.functional.pil_to_tensor(decode_pillow(encoded)))


def test_fast_images_are_within_one_and_marked(folder):
    fast = ours(folder, fast=True)
    for index in range(N):
        assert (fast[index][0] - ours(folder)[index][0]).abs().max() <= 1.01 / 255
    assert fast.transform_name == "resize36-crop32-fast" and fast.fingerprint != ours(folder).fingerprint
    images = ours(folder, fast=True, augment=ImageNetAugmentation(16))
    pixels, labels = next(iter(TrainingBatches(images, 8, device="cpu", seed=5)))
    reference, reference_labels = training_epoch(folder, 0)[0]
    assert torch.equal(labels, reference_labels) and (pixels - reference).abs().max() < 6 / 255


def test_both_formats_have_one_fingerprint(folder):
    assert ours(folder).fingerprint == legacy(folder).fingerprint
    others = [
        ImageFolderLMDB(folder / "ours.lmdb", ResizeAndCrop(32, 32), name="test/val"),
        ImageFolderLMDB(folder / "ours.lmdb", TRANSFORM, name="test/train"),
        ours(folder, labels=torch.tensor(LABELS) + 1),
    ]
    assert len({images.fingerprint for images in [ours(folder), *others]}) == 4


def test_indices_behave_as_a_lists(folder):
    images = ours(folder)
    assert [label for _, label in images] == [images[index - N][1] for index in range(N)] == LABELS
    assert torch.equal(images[-2][0], images[N - 2][0])
    assert images[np.int64(3)][1] == images[torch.tensor(3)][1] == LABELS[3]
    for index, error in [(N, IndexError), (-N - 1, IndexError), ("3", TypeError)]:
        with pytest.raises(error):
            images[index]


def test_labels_from_elsewhere_replace_the_stored_ones(folder):
    given_labels = torch.arange(N) + 50
    images = legacy(folder, labels=given_labels)
    assert torch.equal(images.labels, given_labels) and images[4][1] == 54
    with pytest.raises(InputError, match="20 labels for the 21 images"):
        legacy(folder, labels=given_labels[:20])


def test_a_folder_with_data_mdb_and_a_list_of_keys_that_is_not_read(tmp_path):
    write_legacy_lmdb(tmp_path / "data.mdb", [([IMAGES[0]], np.array(1))] * 2)
    write_raw_lmdb(tmp_path / "data.mdb", {b"__keys__": b"no pickle at all"})
    assert len(ImageFolderLMDB(tmp_path)) == 2


# --- processes -------------------------------------------------------------------------------------------------------


def test_one_file_can_be_opened_many_times(folder):
    several = [ours(folder), ours(folder), ImageFolderLMDB(folder / "." / "ours.lmdb")]
    assert [images.record(3)[1] for images in several] == [LABELS[3]] * 3
    del several[0]
    assert several[0].record(4) == (IMAGES[4], LABELS[4])


def read_in_child(images, queue):
    queue.put([images.record(index) for index in range(N)])


@pytest.mark.parametrize(("method", "open_images"), [("fork", ours), ("fork", legacy), ("spawn", ours)])
def test_processes_open_the_file_for_themselves(folder, method, open_images):
    images = open_images(folder)
    images.record(0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(images, queue))
    child.start()
    assert queue.get(timeout=60) == list(zip(IMAGES, LABELS))
    child.join(60)
    assert child.exitcode == 0
    assert images.record(5) == (IMAGES[5], LABELS[5])


def test_threads_read_side_by_side(folder):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ours(folder).record, list(range(N)) * 20)) == list(zip(IMAGES, LABELS)) * 20


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(folder, workers):
    images = ours(folder)
    indices = torch.tensor([20, 3, 3, 0, 11])
    loader = Batches(images, 2, device="cpu", workers=workers, indices=indices)
    pixels, labels = (torch.cat(parts) for parts in zip(*loader))
    assert len(loader) == 3 and labels.tolist() == [LABELS[index] for index in indices]
    assert torch.equal(pixels, torch.stack([images[index][0] for index in indices]))


def training_epoch(folder, epoch, first_step=0, **options):
    images = ours(folder, augment=ImageNetAugmentation(size=16))
    loader = TrainingBatches(images, 8, device="cpu", seed=5, **options)
    loader.set_epoch(epoch, first_step)
    return list(loader)


def test_training_batches_do_not_depend_on_workers_or_processes(folder):
    whole = training_epoch(folder, 1)
    assert [len(labels) for _, labels in whole] == [8, 8, 5]
    others = [
        training_epoch(folder, 1, workers=2),
        [
            tuple(torch.cat(parts) for parts in zip(*shards))
            for shards in zip(*(training_epoch(folder, 1, rank=rank, world_size=7) for rank in range(7)))
        ],
    ]
    for other in others:
        for (pixels, labels), (other_pixels, other_labels) in zip(whole, other, strict=True):
            assert torch.equal(labels, other_labels) and torch.equal(pixels, other_pixels)
    resumed = training_epoch(folder, 1, first_step=1, workers=1)
    assert len(resumed) == 2 and torch.equal(resumed[0][0], whole[1][0])
    assert not torch.equal(training_epoch(folder, 2)[0][0], whole[0][0])


def test_workers_stay_from_epoch_to_epoch(folder):
    loader = TrainingBatches(ours(folder, augment=ImageNetAugmentation(16)), 8, device="cpu", seed=5, workers=1)
    for epoch in (0, 1, 2):
        loader.set_epoch(epoch)
        if epoch == 1:
            next(iter(loader))  # an epoch that is left early
            continue
        for (pixels, labels), (expected, expected_labels) in zip(loader, training_epoch(folder, epoch), strict=True):
            assert torch.equal(pixels, expected) and torch.equal(labels, expected_labels)


def test_empty_slices_have_the_shape_of_a_batch(folder):
    pixels, labels = training_epoch(folder, 0, rank=7, world_size=8)[-1]  # five images for eight processes
    assert pixels.shape == (0, 3, 16, 16) and labels.shape == (0,)


def test_training_without_augmentation_sees_the_images_as_evaluation(folder):
    loader = TrainingBatches(ours(folder), 8, device="cpu", seed=0)
    pixels, _ = next(iter(loader))
    seen = {row.numpy().tobytes() for row in pixels}
    assert seen <= {images[0].numpy().tobytes() for images in ours(folder)}


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_met_by_a_worker_is_named_in_one_line(tmp_path, workers):
    write_lmdb(tmp_path / "x.lmdb", [(IMAGES[0], 0), (b"no image", 1)], ["a", "b"])
    with pytest.raises(InputError, match=r"x\.lmdb, record 1: not an image of a known format") as error:
        list(Batches(ImageFolderLMDB(tmp_path / "x.lmdb", TRANSFORM), 2, device="cpu", workers=workers))
    assert "\n" not in str(error.value)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_missing_and_foreign_files(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"none\.lmdb"):
        ImageFolderLMDB(tmp_path / "none.lmdb")
    for contents in (b"", b"x" * 100, IMAGES[0], b"\0" * 100_000):
        (tmp_path / "x.lmdb").write_bytes(contents)
        with pytest.raises(InputError, match=r"x\.lmdb is not a readable LMDB file"):
            ImageFolderLMDB(tmp_path / "x.lmdb")


@pytest.mark.parametrize("name", ["ours.lmdb", "legacy.lmdb"])
def test_truncated_files(tmp_path, folder, name):
    contents = (folder / name).read_bytes()
    pages = len(contents) // 4096
    for kept in [4096 * pages - 1, 4096 * (pages - 1), 4096 * (pages // 2), 4096 * 2, 4096 * 2 - 5, 4096, 1000]:
        (tmp_path / name).write_bytes(contents[:kept])
        with pytest.raises(InputError, match=r"is truncated|not a readable LMDB file"):
            ImageFolderLMDB(tmp_path / name)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({b"a": b"b"}, "neither __meta__ nor __len__"),
        ({b"__meta__": b"{}"}, "__meta__, is damaged or of another kind: format is missing"),
        ({b"__meta__": b"\xff"}, "__meta__, is damaged or of another kind: it is not JSON"),
        ({b"__meta__": encode_meta(1, ["a"]).replace(b'version": 1', b'version": 2')}, "version should be 1, got 2"),
        ({b"__meta__": encode_meta(-1, ["a"])}, "length should be greater than or equal to 0, got -1"),
        ({b"__meta__": encode_meta(1, [1])}, "classes.0 should be a valid string, got 1"),
        ({b"__meta__": encode_meta(5, ["a"]), b"__labels__": b""}, "states 5 images and holds 0"),
        ({b"__meta__": encode_meta(0, ["a"]), b"__labels__": b""}, "no images"),
        (
            {b"__meta__": encode_meta(0, ["a"]), b"__labels__": b"", b"7": b""},
            "states 0 images and holds 1",
        ),
        ({b"__len__": pickle.dumps(5)}, "states 5 images and holds 1"),
        ({b"__len__": pickle.dumps("5")}, "no number of images"),
        ({b"__len__": pickle.dumps(-1)}, "no number of images"),
        ({b"__len__": b"junk"}, "__len__"),
    ],
)
def test_lmdb_files_of_other_kinds(tmp_path, pairs, message):
    write_raw_lmdb(tmp_path / "x.lmdb", pairs)
    with pytest.raises(InputError, match=message) as error:
        ImageFolderLMDB(tmp_path / "x.lmdb")
    assert "x.lmdb" in str(error.value)


@pytest.mark.parametrize(
    "record",
    [
        [IMAGES[0]],
        ([IMAGES[0]],),
        ([IMAGES[0], IMAGES[0]], np.array(1)),
        (IMAGES[0], np.array(1)),
        (["text"], np.array(1)),
        ([IMAGES[0]], np.array([1, 2])),
        ([IMAGES[0]], np.array(1.5)),
        ([IMAGES[0]], "label"),
        ([IMAGES[0]], None),
    ],
    ids=range(9),
)
def test_older_records_of_other_kinds(tmp_path, record):
    write_legacy_lmdb(tmp_path / "x.lmdb", [([IMAGES[0]], np.array(1)), record])
    images = ImageFolderLMDB(tmp_path / "x.lmdb")
    with pytest.raises(InputError, match=r"x\.lmdb, record 1 "):
        images[1]
    with pytest.raises(InputError, match=r"x\.lmdb, record 1 "):
        _ = images.labels


def test_missing_records_and_labels(tmp_path):
    ours = {b"__meta__": encode_meta(1, ["a"]), b"__labels__": encode_labels([0])}
    write_raw_lmdb(tmp_path / "x.lmdb", {**ours, b"5": encode(IMAGES[0], 0)})
    with pytest.raises(InputError, match=r"x\.lmdb, record 0 is missing"):
        ImageFolderLMDB(tmp_path / "x.lmdb")[0]
    for stored, message in [(b"junk", "checksum"), (encode_labels([0, 1]), "2 labels for 1 images")]:
        write_raw_lmdb(tmp_path / "y.lmdb", {**ours, b"__labels__": stored, b"0": encode(IMAGES[0], 0)})
        with pytest.raises(InputError, match=message):
            _ = ImageFolderLMDB(tmp_path / "y.lmdb").labels


def test_a_file_replaced_while_in_use(tmp_path):
    path = tmp_path / "x.lmdb"
    write_lmdb(path, [(IMAGES[0], 0)], ["a"])
    images = ImageFolderLMDB(path)
    write_lmdb(path, [(IMAGES[1], 0)], ["a"])
    assert images.record(0)[0] == IMAGES[0]  # the file that was opened lives on
    del images
    assert ImageFolderLMDB(path).record(0)[0] == IMAGES[1]


@pytest.mark.parametrize("where", ["label", "image", "record", "length"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_an_older_file_runs(tmp_path, where, protocol):
    danger = Dangerous(tmp_path / "ran")
    record = {"label": ([IMAGES[0]], danger), "image": ([danger], np.array(1)), "record": danger}.get(where)
    path = tmp_path / "x.lmdb"
    write_legacy_lmdb(path, [record or ([IMAGES[0]], np.array(1))], protocol)
    if where == "length":
        write_raw_lmdb(path, {b"__len__": pickle.dumps(danger, protocol)})
    with pytest.raises(InputError, match=r"open"):
        _ = ImageFolderLMDB(path, TRANSFORM)[0]
    assert not (tmp_path / "ran").exists()


SMALL_JPEG = encoded_image("rgb", 0, size=(16, 12))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    legacy=st.booleans(),
    fast=st.booleans(),
    flips=st.dictionaries(st.integers(0, 10**6), st.integers(1, 255), min_size=1, max_size=4),
)
def test_flipped_bytes_give_an_error_or_an_image(tmp_path_factory, legacy, fast, flips):
    """Our checksum finds every flip. An older record has none: an error, or the image whose bytes are flipped."""
    record = pickle.dumps(([SMALL_JPEG], np.array([3]))) if legacy else encode(SMALL_JPEG, 3)
    damaged = bytearray(record)
    for position, flip in flips.items():
        damaged[position % len(record)] ^= flip
    if bytes(damaged) == record:
        return
    path = tmp_path_factory.getbasetemp() / "flipped.lmdb"
    path.unlink(missing_ok=True)
    head = (
        {b"__len__": pickle.dumps(1)}
        if legacy
        else {b"__meta__": encode_meta(1, ["a"]), b"__labels__": encode_labels([3])}
    )
    write_raw_lmdb(path, {**head, b"0": bytes(damaged)})
    images = ImageFolderLMDB(path, TRANSFORM, fast=fast)
    try:
        pixels, label = images[0]
    except InputError as error:
        assert "flipped.lmdb, record 0" in str(error)
    else:
        assert legacy and pixels.shape == (3, 32, 32) and isinstance(label, int)
