"""Execute the notebooks: from each `NAME.py` here (jupytext's py:percent) a `NAME.ipynb` with its tables and pictures.

python notebooks/execute.py                    all of them, some minutes each on one core
python notebooks/execute.py d2_jax trust       these

What depends on the machine or the hour is left out of the files: progress bars, what was written to the error stream, when a cell
ran and the kernel's version. Running a notebook again changes its results where they have changed, and the seconds that fits quote.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LONGEST = 1_800
"""Seconds that a cell may take."""


def sources() -> dict[str, Path]:
    """The notebooks' sources by name, in order."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path != Path(__file__).resolve()}


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, run from its first cell to its last."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    client = NotebookClient(notebook, timeout=LONGEST, kernel_name="python3", record_timing=False, store_widget_state=False)
    client.execute(cwd=str(FOLDER))
    return plain(notebook, source.stem)


def plain(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The notebook without anything that another machine or another run would write differently."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{name}-{i}", nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not passing(output)]
    return notebook


def passing(output: Any) -> bool:
    """Whether an output is a progress bar, emptied or not, or a message for whoever watches."""
    if output.output_type == "stream":
        return bool(output.name == "stderr")
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data or not any(data.values())


def main() -> None:
    found = sources()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(found))
    names = parser.parse_args().names or list(found)
    if unknown := sorted(set(names) - set(found)):
        parser.error(f"no notebook {unknown[0]!r}; there are {', '.join(found)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYROVI_SMALL", None)  # what is committed is the full size
    for name in names:
        began = time.perf_counter()
        target = found[name].with_suffix(".ipynb")
        nbformat.write(execute(found[name]), target)
        print(f"{target.name}: {time.perf_counter() - began:.0f} s, {target.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
