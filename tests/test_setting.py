"""Where a comparison's checkpoints and labels are found."""

import pytest
import torch

from univ.compare.inputs import find_checkpoints, read_report
from univ.errors import InputError


@pytest.mark.parametrize("below", ["", "eps1", "digits/eps1"])
def test_the_model_folder_may_be_the_folder_itself_or_hold_it(tmp_path, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vgg11.pt").touch()
    assert find_checkpoints(["vgg11"], "digits", "eps1", tmp_path) == {"vgg11": folder / "vgg11.pt"}


def test_a_missing_checkpoint_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="vgg11"):
        find_checkpoints(["vgg11"], "digits", "eps1", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere .*--model-dir"):
        find_checkpoints(["vgg11"], "digits", "eps1", tmp_path / "nowhere")


def test_labels_come_from_the_report(tmp_path):
    report = tmp_path / "vgg11_eps1.csv"
    report.write_text("target_index,target_label\n5,3\n2,0\n")
    assert read_report(report, "target_label").equal(torch.tensor([3, 0]))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "target_label\nthree\n"])
def test_a_foreign_report_is_named(tmp_path, text):
    report = tmp_path / "vgg11_eps1.csv"
    report.write_text(text)
    with pytest.raises(InputError, match=r"vgg11_eps1\.csv.*(target_label|not a CSV)"):
        read_report(report, "target_label")


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no report .*vgg11_eps1\.csv"):
        read_report(tmp_path / "vgg11_eps1.csv", "target_index")
