"""The notebooks run from top to bottom on results, on too few and on none, and draw what `univ.show.plots` draws."""

from dataclasses import dataclass
from pathlib import Path

import commands
import nbformat
import pytest
from nbclient import NotebookClient
from synthetic_results import write_scores, write_sources

from univ.errors import InputError
from univ.show import plots

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
OF_RESULTS = {name: path for name, path in NOTEBOOKS.items() if name != "your_models"}


@dataclass(frozen=True)
class Study:
    """A folder with results/, data/ and figs/, where its notebooks were started, and what each printed ([figure]: a
    picture)."""

    root: Path
    start: Path
    said: dict[str, str]


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Study]:
    """All notebooks on full, incomplete and no results. One kernel runs them all, as starting one takes longest; names
    are wiped before every notebook."""
    full, incomplete, empty = (
        Study(tmp_path_factory.mktemp(name), start, dict.fromkeys(OF_RESULTS, ""))
        for name, start in (("full", ROOT / "notebooks"), ("incomplete", ROOT), ("empty", ROOT))
    )
    write_sources(full.root)
    models = ("resnet50", "vgg16_bn")
    write_scores(incomplete.root / "results", "imagenet100", models, inputs=("standard",), ks=(10,))

    cells, owners = [], []
    for study in (full, incomplete, empty):
        folders = {f"UNIV_{name.upper()}": str(study.root / name) for name in ("results", "data", "figs", "runs")}
        begin = f"%reset -f\nimport os\nos.environ.update({folders})\nos.chdir({str(study.start)!r})"
        for name, path in OF_RESULTS.items():
            code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
            of_notebook = [nbformat.v4.new_code_cell(source) for source in (begin, *code)]
            cells += of_notebook
            owners += [(study, name)] * len(of_notebook)
    together = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(together, timeout=120, kernel_name="python3").execute()
    for (study, name), cell in zip(owners, together.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            study.said[name] += output.get("text", "") + data.get("text/plain", "") + "[figure]" * ("image/png" in data)
    return {"full": full, "incomplete": incomplete, "empty": empty}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_committed_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "UNIV_FIGS" in code[0].source  # the paths are in the first cell of code
    assert str(ROOT) not in NOTEBOOKS[name].read_text()


def test_full_results(studies):
    said = studies["full"].said
    figures = {name: text.count("[figure]") for name, text in said.items()}
    expected = {
        "data_effect": 6,
        "rep_vs_pred_sim": 1,
        "probe_agreement": 1,
        "jaccard_apx": 2,
        "inv_img_example": 1,
    }
    expected["model_maps"] = 24  # a heat map and a map of 6 measures, on regular and inverted images
    assert figures == expected and set(OF_RESULTS) == set(plots.FIGURES)
    assert "imagenet: no results" in said["data_effect"] and "digits, " not in said["data_effect"]
    root = studies["full"].root
    sources = plots.Sources(root / "results", root / "data")
    stems = {stem for draw in plots.FIGURES.values() for stem, figure in draw(sources) if figure is not None}
    drawn = {path.name for path in (root / "figs").iterdir()}
    assert drawn == {stem + suffix for stem in stems for suffix in (".pdf", ".png")}  # as without Jupyter


def test_incomplete_results(studies):
    study, said = studies["incomplete"].root, studies["incomplete"].said
    assert "imagenet100, standard: cka, proc, rtd, jacc, dis, jsd at eps 0.25, 0.5, 3" in said["data_effect"]
    assert "imagenet100, inverted" in said["data_effect"] and "cifar10: no results" in said["data_effect"]
    assert "subgroup_sim.py makes it" in said["rep_vs_pred_sim"]
    assert "compare_probes.py makes it" in said["probe_agreement"]
    assert "k = 500, missing:\n  imagenet: no results" in said["jaccard_apx"]
    assert f"missing: no {study / 'data' / 'digits' / 'inverted'}" in said["inv_img_example"]
    drawn = {path.stem for path in (study / "figs").iterdir()}
    maps = {f"heat_map_{measure}_imagenet100_standard" for measure in ("cka", "proc", "rtd", "jacc", "dis", "jsd")}
    assert drawn == maps | {"similarity_standard", "agreement_standard", "jsd_standard", "jaccard_by_k_standard"}


def test_no_results(studies):
    said = studies["empty"].said
    assert "imagenet: no results" in said["data_effect"] and "imagenet: no results" in said["jaccard_apx"]
    assert not any("[figure]" in text for text in said.values())
    assert not (studies["empty"].root / "figs").exists()


@pytest.mark.slow
def test_your_own_models(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIV_FIGS", str(tmp_path / "figs"))
    path = str(NOTEBOOKS["your_models"])
    commands.module_of("scripts/run_notebook.py").main([path, "--figs", str(tmp_path / "figs"), "--out", str(tmp_path)])
    cells = nbformat.read(tmp_path / "your_models.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert "robust: accuracy" in said and "narrow: probe accuracy" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    drawn = {path.stem for path in (tmp_path / "figs").iterdir()}
    assert drawn == {"your_models_cka", "your_models_layers", "your_models_inverted"}


CELLS = '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}'


@pytest.mark.parametrize("text", ["", "x", "[]", "3", "{}", '{"nbformat": 99}', CELLS, "\xff"])
def test_what_is_no_notebook_is_refused(text, tmp_path):
    path = tmp_path / "no.ipynb"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"no\.ipynb is no notebook"):
        commands.module_of("scripts/run_notebook.py").main([str(path)])


def test_a_notebook_that_stops_says_where_and_is_kept(tmp_path):
    path = tmp_path / "stops.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('begun')", "{}['lost']", "print('not reached')")]
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    with pytest.raises(InputError, match=r"stops\.ipynb stopped: KeyError: 'lost'$"):
        commands.module_of("scripts/run_notebook.py").main([str(path), "--out", str(tmp_path / "made")])
    kept = (tmp_path / "made/stops.ipynb").read_text()
    assert "begun" in kept and "KeyError" in kept
