"""The Hub's own extension point: `custom_generate/` of a draft's repository.

With it `target.generate(..., custom_generate="user/draft", trust_remote_code=True)` runs with the draft of that
repository wherever hf_eagle3 is installed; where it is not, the host's error names the package. The code holds no
drafting: it loads the draft and calls `generate` again.
"""

from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from .._version import __version__


SUBFOLDER = "custom_generate"
PIP_NAME = "hf-eagle3"
# `import hf_eagle3` stands at the top on purpose: the host looks through imports first and says what to install.
GENERATE = '''"""EAGLE-3 speculation with the draft of this repository: the same text, sooner.

    target.generate(**inputs, custom_generate="{repository}", trust_remote_code=True)

Needs hf_eagle3 (`pip install {package}`). The same without remote code:

    draft = hf_eagle3.Eagle3DraftModel.from_pretrained("{repository}").to(target.device, target.dtype)
    target.generate(**inputs, assistant_model=draft)
"""

import functools

import hf_eagle3


REPOSITORY = {repository!r}


@functools.lru_cache(maxsize=2)
def load(repository, device, dtype, **hub):
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(repository, dtype=dtype, **hub)
    return draft.to(device).eval()


def generate(
    model,
    assistant_model=None,
    draft=REPOSITORY,
    revision=None,
    token=None,
    cache_dir=None,
    local_files_only=False,
    **kwargs,
):
    """`model.generate` with this repository's draft; `draft` names another directory or Hub id to take it from."""
    if assistant_model is None:
        hub = {{"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}}
        assistant_model = load(draft, model.device, model.dtype, **hub)
    return model.generate(assistant_model=assistant_model, **kwargs)
'''


def write_custom_generate(folder: str | Path, repository: str) -> None:
    """`custom_generate/generate.py` and `requirements.txt` in `folder`, for a draft that will lie at the Hub id."""
    validate_repo_id(repository)  # it becomes part of a program
    here = Path(folder) / SUBFOLDER
    here.mkdir(parents=True, exist_ok=True)
    code = GENERATE.format(repository=repository, package=PIP_NAME)
    (here / "generate.py").write_text(code, encoding="utf-8")
    (here / "requirements.txt").write_text(f"{PIP_NAME}>={__version__}\n", encoding="utf-8")
