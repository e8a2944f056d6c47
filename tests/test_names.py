"""Names from files and flags that become parts of paths stay in their folder."""

import json
from pathlib import Path

import pytest

import cifar10_training
import func
import inversion
import rep
import train_probe
from univ.errors import InputError
from univ.files import disk as files
from univ.models import checkpoints, file_stem
from univ.reps.cache import RepCache
from univ.results import ResultFile
from univ.show import plots
from univ.training.folder import make_room
from univ.utils import imagenet50

OUTSIDE = ("../x", "../../x", "/x", "a/../../x", "a/b", "..", "", "a\nb", "\ud800", "a\\b", "x" * 300)


@pytest.mark.parametrize("name", OUTSIDE)
def test_every_path_of_a_name_refuses_one_that_leaves_its_folder(tmp_path, name):
    makers = [
        lambda: file_stem(name),
        lambda: RepCache(tmp_path, "digits", name + "/", False),
        lambda: ResultFile(name, "digits", "digits", "eps1").path(tmp_path),
        lambda: ResultFile("cka", name, "digits", "eps1").path(tmp_path),
        lambda: ResultFile("cka", "sat6", name, "eps1").path(tmp_path),
        lambda: ResultFile("jacc", "digits", "digits", "eps1", function=name).singles_path(tmp_path),
    ]
    if name not in ("", ".."):  # else the name around it makes it one of a file
        makers += [
            lambda: ResultFile("cka", "digits", "digits", "eps1", name).path(tmp_path),
            lambda: ResultFile("cka", "digits", "digits", name, "0").companion_path(tmp_path, "ci"),
        ]
    for maker in makers:
        with pytest.raises(InputError, match="file name"):
            maker()
    assert ResultFile("cka", "digits", "digits", "eps1", "0").path(tmp_path).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name != "a/b"])
def test_a_relative_path_stays_below_its_folder(name):
    with pytest.raises(InputError, match="file name"):
        files.relative_path(name, "--run-name")
    assert files.relative_path("digits/vgg11_eps1", "--run-name") == Path("digits/vgg11_eps1")


@pytest.fixture
def saved(tmp_path) -> tuple[Path, Path]:
    """A folder that holds an earlier run, and one beside it that must stay."""
    save, other = tmp_path / "a" / "save", tmp_path / "x_run"
    save.mkdir(parents=True)
    other.mkdir()
    (other / "precious").touch()
    (save / checkpoints.LATEST).touch()
    return save, other


@pytest.mark.parametrize("content", [*OUTSIDE[:4], "ABSOLUTE", 3, None, ["x"]])
@pytest.mark.parametrize("overwrite", [False, True])
def test_args_json_removes_nothing_outside_of_save(saved, content, overwrite):
    save, other = saved
    model = str(other).removesuffix("_run") if content == "ABSOLUTE" else content
    (save / "args.json").write_text(json.dumps({"arguments": {"model": model}}))
    before = sorted(save.iterdir())
    if overwrite:
        make_room(save, overwrite=True)
        assert list(save.iterdir()) == []
    else:
        with pytest.raises(InputError, match=r"args\.json"):
            make_room(save, overwrite=False)
        assert sorted(save.iterdir()) == before
    assert (other / "precious").exists() and sorted(save.parent.parent.iterdir()) == [save.parent, other]


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"arguments": 1}', "\xff"])
def test_an_args_json_of_another_kind_is_one_line(saved, text):
    (saved[0] / "args.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"args\.json"):
        make_room(saved[0], overwrite=False)


def test_runs_moved_away_earlier_stay(saved):
    save = saved[0]
    for number in range(3):
        (save / checkpoints.LATEST).write_text(str(number))
        (save / "args.json").write_text('{"arguments": {"model": "timm:vgg11"}}')
        make_room(save, overwrite=False)
    kept = {folder.name: (folder / checkpoints.LATEST).read_text() for folder in save.iterdir()}
    assert kept == {"timm_vgg11_run": "0", "timm_vgg11_run2": "1", "timm_vgg11_run3": "2"}


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (rep.main, ["-e", "1#/../../../../evil"]),
        (func.main, ["-e", "1#/../../../../evil"]),
        (rep.main, ["-e", "2/255"]),
        (train_probe.main, ["-d", "digits", "-m", __file__, "-a", "vgg11", "--run-name", "../evil"]),
        (train_probe.main, ["-d", "digits", "-m", __file__, "-a", "vgg11", "--run-name", "/evil"]),
        (inversion.main, ["-d", "digits", "-m", "../evil"]),
        (inversion.main, ["-d", "digits", "-m", "timm:../evil"]),
        (cifar10_training.main, ["--dataset", "digits", "-m", "torchvision:../../evil"]),
        (imagenet50.main, ["-s", "../evil"]),
    ],
)
def test_a_flag_does_not_lead_outside(main, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, InputError)) as stop:
        main(words)
    assert "evil" in str(stop.value) + capsys.readouterr().err or "2/255" in words
    assert list(tmp_path.iterdir()) == []


def test_a_figure_stays_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(plots.FIGURES, "probe_agreement", lambda sources: [("../../evil", None)])
    with pytest.raises(InputError, match="evil"):
        plots.main(["--figs", str(tmp_path / "a" / "b"), "--only", "probe_agreement"])
