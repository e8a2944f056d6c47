"""Run a notebook from top to bottom without a browser; its figures go where its cells put them.

    python scripts/run_notebook.py notebooks/data_effect.ipynb
    python scripts/run_notebook.py notebooks/data_effect.ipynb --results smoke/results --figs smoke/figs

The folders reach the notebook as the environment variables its first cell reads (UNIV_RESULTS, UNIV_FIGS, ...).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))  # univ, when it is not installed

from univ import cli, files
from univ.errors import InputError

FOLDERS = ("results", "figs", "data", "runs")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("notebook", type=cli.existing_file, help="the .ipynb file; it is not changed")
    for name in FOLDERS:
        parser.add_argument(f"--{name}", type=cli.folder, help=f"the {name} folder; default: the repository's")
    parser.add_argument("--out", type=cli.output_dir, help="folder to keep the executed notebook in; default: not kept")
    parser.add_argument("--timeout", type=cli.positive_int, default=600, help="seconds a cell may take")
    return parser.parse_args(argv)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook file.

    Raises:
        InputError: it is none.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # what is no notebook ends in errors of every kind there
        raise InputError(f"{path} is no notebook: {error}") from error
    return notebook


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    folders = {f"UNIV_{name.upper()}": str(getattr(args, name).resolve()) for name in FOLDERS if getattr(args, name)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read(args.notebook)
    client = NotebookClient(
        notebook, timeout=args.timeout, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    )
    try:
        client.execute(env={**os.environ, **folders, "PYTHONPATH": path, "MPLBACKEND": "Agg"})
    except CellExecutionError as error:
        raise InputError(f"{args.notebook} stopped: {error.ename}: {error.evalue}") from error
    except (CellTimeoutError, DeadKernelError, NoSuchKernel) as error:
        raise InputError(f"{args.notebook} stopped: {error}") from error
    finally:  # one that has stopped shows where
        if args.out is not None:
            files.write_text(args.out / args.notebook.name, nbformat.writes(notebook))


if __name__ == "__main__":
    cli.run(main)
