"""Runs the notebooks under docs/: ``python -m tests.docs.notebooks`` writes their outputs anew."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path, folder):
    """Run the cells of a notebook in a folder; an error in a cell is an error here."""
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "UNLEARNKIT_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    resources = {"metadata": {"path": str(folder)}}
    options = {"kernel_name": "python3", "timeout": 300, "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, resources=resources, **options)
    client.execute(env=environment)
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel's says which Python it was
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, folder), path)
