"""`docs/walk_through.ipynb` runs from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.documents.markdown import CHECKOUT

NOTEBOOK = CHECKOUT / "docs" / "walk_through.ipynb"
# What its reader sees, looked at in the kernel once all cells have run.
SEEN = """
assert embeddings.shape == (len(vocabulary), 64)
# Three epochs on a small log: neighbours are clearly better than chance.
assert by_neighbour > 1.5 * by_chance, (by_neighbour, by_chance)
assert len(list_of_a_fan) == len(list_of_a_stranger) == 20
assert list_of_a_fan["title"].null_count() == 0
seconds = list_of_a_fan["expected_watch_time_s"].to_numpy()
assert (seconds > 0).all() and not set(fans) & set(list_of_a_fan["video_id"])
of_topic = [
    shown["topics"].list.contains(topic).mean()
    for shown in (list_of_a_fan, list_of_a_stranger)
]
assert of_topic[0] > of_topic[1], of_topic
"""


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_a_valid_notebook_without_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not c.outputs and c.execution_count is None for c in code)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its work directory is beside the folder that it lies in.
    folder = tmp_path / "docs"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT), prepend=":")
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(SEEN))
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    assert (tmp_path / "work" / "walk_through" / "serving").is_dir()
