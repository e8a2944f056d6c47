"""Outputs that are links are written through, devices and pipes are left as they are: every flag that names a file."""

import stat
from pathlib import Path

import pytest
from disks import held, make_device, run, small_disk
from writers import commands, make_inputs

import rep
from univ.files import disk as files

# The files of each command that may be links; the others' names hold a time, or belong to a run that was begun.
OUTPUTS = {
    "evaluate": ["accuracy.csv"],
    "invert": ["vgg11_eps1.pt", "vgg11_eps1.csv", "vgg11_eps1.png", "vgg11_eps1.json"],
    "rep": ["cka/standard/10000/digits/cka_eps1_0.csv", "cka/standard/10000/digits/cka_eps1_0_ci.csv"],
    "compare probes": ["probes.csv", "probes.json"],
    "plots": ["rep_vs_pred_digits_standard.pdf", "rep_vs_pred_digits_standard.png"],
    "report": ["report.html"],
    "pack": ["train.lmdb"],
    "labels": ["labels.csv"],
    "train": ["vgg11.pt"],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    make_inputs(root)
    return root


@pytest.mark.parametrize("name", OUTPUTS)
def test_links_are_written_through_and_devices_are_refused(name, inputs, tmp_path):
    command, folder, elsewhere = commands(inputs)[name], tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, output in enumerate(OUTPUTS[name]):
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / str(number)).write_bytes(command.old.get(output, b"{}"))
        (folder / output).symlink_to(elsewhere / str(number))
    words = [*command.words(folder), *["--overwrite"] * (name == "train")]
    ended = run(command.main, words, tmp_path / "log")
    assert ended.code == 0, ended.said
    for number, output in enumerate(OUTPUTS[name]):
        assert (folder / output).is_symlink()
        assert (elsewhere / str(number)).read_bytes() not in (b"", b"old", b"{}")
        assert name != "evaluate" or (elsewhere / str(number)).read_bytes().startswith(command.old[output])
    assert len(list(elsewhere.iterdir())) == len(OUTPUTS[name]), "a temporary file is left over"

    output = folder / OUTPUTS[name][0]
    output.unlink()
    make_device(output)
    before = held(tmp_path) if name != "rep" else {}
    ended = run(command.main, words, tmp_path / "log")
    assert ended.code in (1, 2) and "Traceback" not in ended.said
    assert f"cannot write {output}: it is not a regular file" in ended.said
    assert not stat.S_ISREG(output.lstat().st_mode) and output.exists()
    after = held(tmp_path)
    assert {path: after.get(path) for path in before if path != "log"} == {
        p: c for p, c in before.items() if p != "log"
    }


def test_the_arguments_file_of_rep_may_be_a_link(inputs, tmp_path):
    words = [str(word) for word in commands(inputs)["rep"].words(tmp_path / "results")]
    (tmp_path / "args.json").symlink_to("there.json")
    rep.main([*words, "--config-file-path", str(tmp_path / "args.json")])
    assert (tmp_path / "args.json").is_symlink() and (tmp_path / "there.json").read_text().startswith("{")
    make_device(tmp_path / "device")
    ended = run(rep.main, [*words, "--config-file-path", tmp_path / "device"], tmp_path / "log")
    assert ended.code == 2 and "not a regular file" in ended.said
    assert not (tmp_path / "device").is_file()


@pytest.mark.parametrize("name", ["rep", "probe", "plots", "train", "subgroups", "invert", "pack"])
def test_a_folder_of_outputs_that_is_none_is_one_line(name, inputs, tmp_path):
    make_device(tmp_path / "device")
    command = commands(inputs)[name]
    ended = run(command.main, command.words(tmp_path / "device"), tmp_path / "log")
    assert ended.code == 2 and "Traceback" not in ended.said and str(tmp_path / "device") in ended.said
    assert not (tmp_path / "device").is_file() and sorted(path.name for path in tmp_path.iterdir()) == ["device", "log"]


def test_a_csv_is_not_its_own_description(inputs, tmp_path):
    words = [*commands(inputs)["compare probes"].words(tmp_path)]
    words[words.index("--out") + 1] = tmp_path / "table.json"
    ended = run(commands(inputs)["compare probes"].main, words, tmp_path / "log")
    assert ended.code == 2 and "table.json" in ended.said and not (tmp_path / "table.json").exists()


def test_a_download_goes_through_links_to_another_disk(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    (tmp_path / "there").write_text("old")
    target.symlink_to("there")
    files.move(source, target)
    assert target.is_symlink() and (tmp_path / "there").read_text() == "new" and not source.exists()
    with small_disk(tmp_path / "disk"):
        source.write_text("newer")
        target.unlink()
        target.symlink_to("disk/there")
        files.move(source, target)
        assert held(tmp_path / "disk") == {"there": b"newer"} and target.is_symlink() and not source.exists()
