"""What the site needs beside the pages: README as its first page, links out of docs/, names of the reference as links.

The pages are written for GitHub; nothing in them is for the site alone.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[1]
PICTURE = (".png", ".gif", ".svg")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")  # a relative path; no address, no anchor alone
REFERRED = re.compile(r"\[<code>(\w+)(?:\.(\w+))?</code>\]")  # docstrings name classes in transformers' way


def on_files(files, config):
    """README and the pictures that it shows become files of the site."""
    text = (ROOT / "README.md").read_text("utf-8")
    files.append(File.generated(config, "index.md", content=text))
    for path in LINK.findall(text):
        if path.endswith(PICTURE):
            files.append(File.generated(config, path, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links lead to pages of the site where there are such, and to the repository otherwise."""
    folder = "" if page.file.src_uri == "index.md" else "docs"

    def moved(found) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[1]))
        if path == "README.md":
            return "index.md"
        if files.get_file_from_path(inside := path.removeprefix("docs/")) and (path != inside or folder == ""):
            return inside
        if not (ROOT / path).exists():
            return found[1]  # mkdocs reports it
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{path}"

    return LINK.sub(moved, markdown)


def on_page_content(html, page, config, files):
    """[`Name`] of a docstring leads to that name's entry."""
    known = set(re.findall(r'id="hf_eagle3(?:\.\w+)*\.(\w+)"', html)) if page.file.src_uri == "reference.md" else set()

    def link(found) -> str:
        name, member = found.groups()
        shown = f"<code>{name}{'.' + member if member else ''}</code>"
        place = re.search(rf'id="(hf_eagle3[\w.]*\.{member or name})"', html) if (member or name) in known else None
        return f'<a href="#{place[1]}">{shown}</a>' if place else shown

    return REFERRED.sub(link, html)
