"""What is read back: the right content, or one line that names the file and the field; names are only ever text."""

import contextlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from synthetic_results import write_probe_agreement, write_scores, write_subgroups

from univ import results
from univ.errors import InputError, plain
from univ.files import schemas
from univ.files.tensors import write_tensors
from univ.inversion import Parts
from univ.models import build_model, checkpoints
from univ.reps import probes
from univ.reps.cache import RepCache, read_cache
from univ.reps.identity import Identity, Inputs
from univ.show import plots, report, summary
from univ.show.sources import Sources
from univ.training.log import read_log

ROOT = Path(__file__).parents[1]
NO_JSON = {
    "no JSON": b"settings",
    "no UTF-8": b'{"settings": "\xff"}',
    "nested too deeply": b'{"settings":' * 50_000,
    "half a character": b'{"settings": {"dataset": "\\ud800"}}',
    "a list": b"[]",
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=list(NO_JSON))
def test_what_is_not_the_json_it_should_be_is_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is (damaged|not UTF-8)") as caught:
        schemas.read_json(path, schemas.Sidecar)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_field_and_what_it_should_be_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"settings": {"knn": "ten"}, "csv_sha256": "0"}))
    with pytest.raises(InputError, match=r"x\.json .*: settings\.knn should be a valid integer, got 'ten'"):
        schemas.read_json(path, schemas.Sidecar)
    path.write_text(json.dumps({"settings": {}}))
    with pytest.raises(InputError, match=r"x\.json .*: csv_sha256 is missing"):
        schemas.read_json(path, schemas.Sidecar)


# --- results and their readers --------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    root = tmp_path / "results"
    write_scores(root, eps=["eps0", "eps1"], ks=[10])
    write_subgroups(root)
    write_probe_agreement(root)
    return root


def test_a_result_whose_json_is_damaged_is_not_done_and_readers_go_on(study):
    paths = sorted(path for path in study.rglob("*.json") if "eps1" in path.name or "eps" not in path.name)
    for path, content in zip(paths, itertools.cycle(NO_JSON.values())):
        path.write_bytes(content)
    file = results.ResultFile("dis", "digits", "digits", "eps1", exp="10")
    status = results.check(study, file, {})
    assert not status and "dis_eps1_10.json" in status.reason
    page = report.build(Sources(study))
    assert page.count("its JSON,") >= len(paths)
    summary.summarize(study, "digits")


@pytest.mark.parametrize(("column", "value"), [("input", "sideways"), ("pred_type", "perhaps"), ("score", "high")])
def test_a_cell_that_is_none_of_the_values_is_named(study, column, value):
    path = study / "subgroups/digits/standard" / results.SUBGROUPS_NAME
    table = pd.read_csv(path).assign(**({} if column != "input" else {column: "standard"}))
    table[column] = [value, *table[column][1:]]
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=rf"{path.name}, column {column}, row .*: 0 .*{value}"):
        results.load_subgroups(study)


def test_names_are_shown_as_text(tmp_path):
    root, dataset = tmp_path / "results", "$x_1$<i>\udc80"  # a name of a folder that is no UTF-8
    models = ("vgg11", "re{x}snet", "$x_1$", r"$\frac$", "<b>x|y<|b>", "\x1b[31mx")
    write_scores(root, "plainly", models, eps=["eps0", "eps1"], inputs=["standard"], ks=[10])
    for folder in list(root.rglob("plainly")):  # our own programs refuse to write such a name
        folder.rename(folder.with_name(dataset))
    page = report.build(Sources(root))
    page.encode()
    assert "\x1b" not in page and "<b>x" not in page and "$x_1$&lt;i&gt;\\udc80" in page
    figure = plots.heat_maps(results.load_long_table(root), "cka", dataset, "standard")
    plots.save(figure, tmp_path / "figure")
    labels = figure.axes[0].get_xticklabels()
    assert sorted(label.get_text() for label in labels) == sorted([*models[:-1], "\\x1b[31mx"])
    assert not any(label.get_parse_math() for label in labels)
    summary.summarize(root, dataset).encode()


def test_what_steers_a_terminal_is_escaped_in_errors_and_logs():
    assert plain("a\x1b[31m\r\n‮b\ud800é ") == "a\\x1b[31m\\r\\n\\u202eb\\ud800é "
    code = (
        "import sys; from univ import cli, runs; from univ.errors import InputError; from loguru import logger\n"
        "def main():\n    runs.start()\n    logger.info('{}', 'one\\x1b]0;t\\x07')\n"
        "    raise InputError('two\\x1b[2J\\nx')\n"
        "cli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 2
    assert "\x1b" not in done.stderr and "one\\x1b]0;t\\x07" in done.stderr and "two\\x1b[2J; x" in done.stderr


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_weights_that_are_no_plain_tensors_are_named(tmp_path):
    state = build_model("resnet10", "digits", seed=0).model.state_dict()
    name, weight = next(iter(state.items()))
    for other in (weight.view(len(weight), -1).to_sparse(), torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)):
        torch.save({"model": {**state, name: other}}, tmp_path / "w.pt")
        with pytest.raises(InputError, match=rf"w\.pt .*({name}.*expected a plain tensor|QInt8Storage)"):
            checkpoints.read_weights(tmp_path / "w.pt")


def test_weights_that_need_gradients_are_read(tmp_path):
    model = build_model("resnet10", "digits", seed=0)
    torch.save({"model": dict(model.model.named_parameters()) | dict(model.model.named_buffers())}, tmp_path / "w.pt")
    assert not any(weight.requires_grad for weight in checkpoints.read_weights(tmp_path / "w.pt").values())


NEXT = {"recipe": {"attack": None, "epochs": 3}}
CHECKPOINT = {
    "epoch": ("three", -1), "arch": (["resnet10"], "x" * 5000), "resume.steps_per_epoch": (NEXT,)
}  # fmt: skip
PROBE = {
    "weight": (torch.zeros(3, 4).to_sparse(), torch.zeros(3, 4, dtype=torch.int64)), "bias": ([0.0, 0.0, 0.0],),
    "accuracy": ("high",), "seed": (None,), "reps": ("val_reps.pt",), "reps.val": ({"val": "x" * 5000},),
    "run": ("x" * 300,),
}  # fmt: skip


@pytest.mark.parametrize(("load", "fields"), [(checkpoints.load_checkpoint, CHECKPOINT), (probes.load, PROBE)])
def test_fields_of_checkpoints_and_probes_are_checked(tmp_path, load, fields):
    state = build_model("resnet10", "digits", seed=0).model.state_dict()
    good = {"model": state, "epoch": 1, "weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    for field, values in fields.items():
        for value in values:
            torch.save({**good, field.partition(".")[0]: value}, tmp_path / "w.pt")
            with pytest.raises(InputError, match=rf"w\.pt is damaged .*: {re.escape(field)}"):
                load(tmp_path / "w.pt")
    torch.save(good, tmp_path / "w.pt")
    load(tmp_path / "w.pt")


# --- caches, inversions, logs ---------------------------------------------------------------------------------------

IDENTITY = Identity(Inputs("digits", "f00d", "as is", "1234", 5), "vgg11", "head", "abcd")


def test_a_cache_without_logits_or_without_its_origin_is_named(tmp_path):
    store = RepCache(tmp_path, "digits", "eps1", inverted=False)
    metadata = {"key": "vgg11", "identity": json.dumps({"inputs": {"dataset": "digits"}})}
    write_tensors(store._part("vgg11"), {"reps": torch.zeros(5, 2)}, metadata)
    with pytest.raises(InputError, match=r"vgg11\.safetensors .*logits"):
        store.finish()
    store._part("vgg11").unlink()
    write_tensors(store.reps_path, {"vgg11": torch.zeros(5, 2)}, {})
    with pytest.raises(InputError, match=r"reps__digits_eps1_i0 .*vgg11"):
        read_cache(tmp_path, "reps", "digits", "eps1")
    write_tensors(store.reps_path, {"vgg11": torch.zeros(5, 2)}, {"vgg11": metadata["identity"]})
    with pytest.raises(InputError, match=r"reps__digits_eps1_i0, 'vgg11', .*inputs\.fingerprint is missing"):
        read_cache(tmp_path, "reps", "digits", "eps1")


@pytest.mark.parametrize("content", [b"[]", b"\xff", b'{"iterations": '])
def test_damaged_settings_of_parts_are_named_and_overwritten_when_asked(tmp_path, content):
    parts = Parts(tmp_path / "net_eps0.pt", {"iterations": 3}, count=1)
    parts.folder.mkdir()
    (parts.folder / "settings.json").write_bytes(content)
    with contextlib.closing(parts), pytest.raises(InputError, match=r"settings\.json is .*--overwrite"):
        parts.open()
    with contextlib.closing(parts):
        parts.open(discard=True)


def test_damaged_lines_of_a_log_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": "two"}\n[]\n{"epoch": 3, "train_lo')
    assert read_log(path) == [(1, '{"epoch": 1}')]
