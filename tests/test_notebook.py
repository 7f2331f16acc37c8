"""The quick start of the README in a notebook: the bar of ``fit`` and the picture of `plot_history` are shown."""

import base64
import re
from pathlib import Path

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="needs a whole checkout")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the cells show: of the README's first block of Python, and of a picture."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quick_start = re.search(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)[1]
    cells = [quick_start, "fastbp.plot_history(history)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return [cell["outputs"] for cell in notebook["cells"]]


def test_fit_shows_a_bar_and_the_last_epoch_alone(outputs):
    shown = [output["data"] for output in outputs[0] if output["output_type"] == "display_data"]
    (bar,) = [data["text/html"] for data in shown if "<progress" in data.get("text/html", "")]
    assert "max='30' value='30'" in bar
    (line,) = [data["text/plain"] for data in shown if "text/html" not in data]
    assert re.match(r"'epoch 30/30  loss \d\.\d{4}  accuracy ", line)
    printed = "".join(output["text"] for output in outputs[0] if output["output_type"] == "stream")
    assert re.fullmatch(r"9[789]\.\d% of the digits it has not seen\n", printed)


def test_a_plot_is_shown_once(outputs):
    (shown,) = outputs[1]
    assert base64.b64decode(shown["data"]["image/png"]).startswith(PNG)
