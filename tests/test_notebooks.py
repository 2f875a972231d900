"""The notebooks: their form, read without running them; and, with `-m notebooks`, that they run as they are.

What a notebook claims is asserted in its own cells, so a broken one fails here.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_CELLS = 27
STORED = ("01", "02", "03", "05", "06")
LARGEST_NOTEBOOK, LARGEST_PICTURE = 250_000, 80_000  # bytes; characters of base64
EXTRAS = {"01": "[bench]", "02": "[bench]", "03": "[train,bench]", "04": "[bench]", "05": "", "06": "[train,bench]"}
SECONDS_PER_CELL = 900
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of every cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text("utf-8"))["cells"]]


def code(path: Path) -> str:
    return "\n".join(source for kind, source in cells(path) if kind == "code")


def repository() -> str:
    """Where the project says it lives."""
    return re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE).group(1)


def test_there_are_six():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@by_name
def test_cells_are_few_and_each_has_prose_before_it(path):
    kinds = [kind for kind, _ in cells(path)]
    assert len(kinds) <= MOST_CELLS
    assert kinds[0] == "markdown"
    for before, here in pairwise(kinds):
        assert (before, here) != ("code", "code"), "a code cell without prose before it"


@by_name
def test_stored_outputs_are_small_and_name_no_machine(path):
    """`python tests/store_notebooks.py` stores them: of a whole notebook or not at all."""
    assert path.stat().st_size < LARGEST_NOTEBOOK
    outputs, counts = [], []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            outputs += cell["outputs"]
            counts.append(cell["execution_count"])
    assert all(counts) if any(counts) else not outputs
    assert outputs or path.stem[:2] not in STORED
    assert {out["output_type"] for out in outputs} <= {"stream", "display_data", "execute_result"}, (
        "an error is stored"
    )
    for out in outputs:
        assert out.get("name") != "stderr"
        assert set(out.get("data", ())) <= {"text/plain", "image/png"}
        assert len(out.get("data", {}).get("image/png", "")) < LARGEST_PICTURE
    text = json.dumps([out for out in outputs if out["output_type"] == "stream"])
    assert not re.search(r"/(home|root|work|tmp|Users)/", text), "a path of somebody's machine"


def test_pictures_are_where_they_are_promised():
    for name, least in {"01": 1, "02": 4}.items():
        (path,) = FOLDER.glob(f"{name}_*.ipynb")
        assert path.read_text("utf-8").count('"image/png"') >= least, path.name


@by_name
def test_colab_finds_it_and_installs_first(path):
    address = repository()
    badge = f"{address.replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/notebooks"
    _, first = cells(path)[0]
    assert f"]({badge}/{path.name})" in first
    kind, install = cells(path)[1]
    assert kind == "code"
    assert 'if "google.colab" in sys.modules:' in install
    assert f'%pip install --quiet "hf-eagle3{EXTRAS[path.stem[:2]]} @ git+{address}"' in install


@by_name
def test_the_model_is_chosen_by_one_visible_switch(path):
    switches = re.findall(r"^MODEL = .*$", code(path), re.MULTILINE)
    assert switches == ['MODEL = "embedded"  # @param ["embedded", "smollm2"]']
    assert "shipped_pair(MODEL)" in code(path), "falls back to the embedded pair where there is no network"
    prose = "\n".join(source for kind, source in cells(path) if kind == "markdown")
    assert '`"smollm2"`' in prose
    assert re.search(r"not\s+run", prose), "no notebook was run on a GPU: say so"


@by_name
def test_what_it_prints_is_asserted(path):
    source = code(path)
    assert re.search(r"(torch\.equal|identical)", source)
    assert re.search(r"^ *assert .*\b2\b", source, re.MULTILINE), "tau above 2"
    assert not re.search(r"assert [^\n]*(seconds|speedup)", source), "times vary: print them"


@by_name
def test_the_table_has_it(path):
    table = (FOLDER / "README.md").read_text("utf-8")
    assert table.count(f"({path.name})") == 1
    assert f"/blob/main/notebooks/{path.name})" in table


@pytest.mark.notebooks
@by_name
def test_it_runs(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=SECONDS_PER_CELL, kernel_name="python3", resources=resources).execute()
    assert list(tmp_path.iterdir()) == [], "nothing is left beside the notebook"
