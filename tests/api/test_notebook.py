"""The worked notebook runs as Jupyter runs it, and shows a study, its front, a network and the progress of a search."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "studies" / "in_python.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def shown(cells: dict[str, Any], start: str, kind: str = "text/html") -> str:
    """What the cell whose last line has this beginning shows, as a MIME type."""
    cell = next(cell for line, cell in cells.items() if line.startswith(start))
    return "".join(str(output["data"][kind]) for output in cell.outputs if kind in output.get("data", {}))


def test_it_is_committed_without_outputs() -> None:
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in read().cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_worked_notebook_runs(tmp_path: Path) -> None:
    resources = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(read(), timeout=600, kernel_name="python3", resources=resources).execute()
    cells = {cell.source.splitlines()[-1]: cell for cell in done.cells if cell.cell_type == "code"}
    assert "<table>" in shown(cells, "study")
    assert "<table" in shown(cells, "study.frame")
    assert "data" in shown(cells, "study.plot", PLOTLY)
    assert shown(cells, "best.arch")
    assert "trials 3/3" in shown(cells, "found")
    assert "trial    2" in shown(cells, "found")
    assert "study     tiny-shapes" in "".join(o.text for o in cells["found"].outputs if o.get("name") == "stdout")
    assert "data" in shown(cells, "optuna.visualization", PLOTLY)
    assert (tmp_path / "my-studies").is_dir()
