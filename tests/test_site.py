"""The documentation as a site: it builds without a warning, its search finds answers, the reference has every name.

`python tests/test_site.py` writes docs/public_drafts.md from hub/drafts.json.
"""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hf_eagle3
from hf_eagle3.hub.registry import CHECKED, public_drafts


ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")
PUBLIC_DRAFTS = ROOT / "docs" / "public_drafts.md"
BEST = 5  # hits that a reader looks at
# What people ask, in words of theirs, and where the answer stands.
QUESTIONS = {
    "which GPU": "questions/#which-gpu",
    "expected speedup": "questions/#which-gpu",
    "hours 8B": "questions/#how-much-data",
    "how much data": "questions/#how-much-data",
    "good tau": "questions/#which",
    "base model": "questions/#can-a-base-model",
    "learning rate": "questions/#which-learning-rate",
    "memory training": "questions/#how-much-memory-does-training",
    "transformers versions": "questions/#which-versions",
    "draft valid after fine-tuning": "questions/#is-my-draft-still-valid",
    "LoRA adapter": "questions/#is-my-draft-still-valid",
    "vLLM own EAGLE-3": "questions/#how-does-it-compare-with-vllm",
    "batch size pointless": "questions/#at-which-batch-size",
    "public drafts load": "questions/#which-public-drafts",
    "resume interruption": "questions/#how-do-i-resume",
    "several layers": "questions/#can-a-draft-have-several-layers",
    "uninstall hook": "questions/#how-do-i-uninstall",
}


def page_of_drafts() -> str:
    """docs/public_drafts.md."""
    lines = [
        "# Public drafts",
        "",
        "Drafts that `--target` and `Eagle3DraftModel.for_target` find by the target's name. Written by",
        "`python tests/test_site.py` from `hf_eagle3/hub/drafts.json`, which names the source of every entry.",
        "*Its layout is tested*: a replica with the published configuration and tensor names loads in the tests.",
        "The weights themselves were not downloaded: measure a draft before you rely on it; `hf-eagle3 doctor`",
        "says whether it is sound.",
        "",
        "| target | draft | publisher | checked | note |",
        "| --- | --- | --- | --- | --- |",
    ]
    for draft in public_drafts():
        note = draft.notes or ""
        if draft.defects:
            note = f"{note} Wrong values in its file are corrected when loading.".strip()
        link = f"[{draft.draft}](https://huggingface.co/{draft.draft})"
        lines.append(f"| {draft.target} | {link} | {draft.publisher} | {CHECKED[draft.checked]} | {note} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_drafts_is_the_registry():
    assert PUBLIC_DRAFTS.read_text("utf-8") == page_of_drafts(), "run `python tests/test_site.py`"


def entries() -> dict[str, str]:
    """Paths of the reference's entries by their last name."""
    return {path.rpartition(".")[2]: path for path in re.findall(r"^::: ([\w.]+)$", REFERENCE, re.MULTILINE)}


@pytest.mark.parametrize("name", hf_eagle3.__all__)
def test_the_reference_has_every_public_name(name):
    if name == "__version__":
        assert "`hf_eagle3.__version__`" in REFERENCE
        return
    if name in hf_eagle3.TRAINING:
        pytest.importorskip("accelerate")
        pytest.importorskip("datasets")
    module, _, last = entries()[name].rpartition(".")
    assert getattr(import_module(module), last) is getattr(hf_eagle3, name)


# What follows builds the site: a few seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason="needs the extra `docs`")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_names_have_an_entry_with_their_docstring(site):
    html = (site / "reference" / "index.html").read_text("utf-8")
    for name, path in entries().items():
        assert f'id="{path}"' in html, name
    assert "tokens of all sequences, the prefill" in re.sub(r"<[^>]+>", "", html).replace("Tokens", "tokens")
    assert "[<code>" not in html, "a name in transformers' way that is no link"


def test_links_stay_on_the_site_or_lead_to_the_repository(site):
    address = re.search(r"^repo_url: (.*)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)[1]
    first = (site / "index.html").read_text("utf-8")
    assert 'href="using/"' in first
    assert f'href="{address}/blob/main/CONTRIBUTING.md"' in first
    assert (site / re.search(r'<img [^>]*src="([^"]+\.png)"', first)[1]).is_file()
    assert 'href="../#how-fast"' in (site / "questions" / "index.html").read_text("utf-8")
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        for inside in re.findall(rf'href="{address}/(?:blob|tree)/main/([^"#]+)', text):
            assert (ROOT / inside).exists(), f"{page.name} links to {inside}"
            assert not inside.startswith("docs/") or inside.endswith(".py"), f"{page} leaves the site for {inside}"


@pytest.fixture(scope="module")
def index(site):
    lunr = pytest.importorskip("lunr")
    found = json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]
    fields = [{"field_name": "title", "boost": 1000}, "text"]  # as the site's own search weighs them
    return lunr.lunr(ref="location", fields=fields, documents=found)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_search_finds_the_answer(index, question):
    hits = [hit["ref"] for hit in index.search(re.sub(r"[^\w ]", " ", question))[:BEST]]
    assert any(hit.startswith(QUESTIONS[question]) for hit in hits), hits


if __name__ == "__main__":
    PUBLIC_DRAFTS.write_text(page_of_drafts(), encoding="utf-8")
