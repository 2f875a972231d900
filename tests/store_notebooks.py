"""`python tests/store_notebooks.py [NAME ...]`: run the notebooks and store outputs, without this machine's paths.

What is stored is what a reader sees on GitHub: text and small pictures. Progress bars and warnings are left out.
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


ROOT = Path(__file__).parents[1]
KEPT = ("text/plain", "image/png")
TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/tmp\w+")


def without_paths(text: str) -> str:
    """Paths of the checkout are relative, temporary folders are WORK."""
    return TEMPORARY.sub("WORK", text.replace(f"{ROOT.as_posix()}/", ""))


def clean(book: nbformat.NotebookNode) -> None:
    """Drop what says nothing or differs from run to run."""
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr" and not is_widget(out)]
        for out in cell.outputs:
            if "text" in out:
                out.text = without_paths(out.text)
            if "data" in out:
                out.data = {kind: without_paths(out.data[kind]).strip() for kind in KEPT if kind in out.data}


def is_widget(out: nbformat.NotebookNode) -> bool:
    """Progress bars, which a stored notebook cannot show."""
    return any("widget" in kind for kind in out.get("data", ()))


def main(names: list[str]) -> None:
    """Run those whose names start with one of `names`; all of them without."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if names and not path.name.startswith(tuple(names)):
            continue
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(
                book, timeout=900, kernel_name="python3", resources=resources, record_timing=False
            ).execute()
        clean(book)
        book.metadata.pop("widgets", None)
        book.metadata["language_info"] = {"name": "python"}
        nbformat.write(book, path)


if __name__ == "__main__":
    main(sys.argv[1:])
