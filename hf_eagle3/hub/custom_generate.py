"""`custom_generate/` of a draft's repository, transformers' extension point for code on the Hub.

With it, `target.generate(..., custom_generate="user/draft", trust_remote_code=True)` uses the draft of that repository
where hf_eagle3 is installed; elsewhere transformers raises an error that names the package. The code only loads the
draft and calls `generate` again; it does not know how drafting works.
"""

from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from .._version import __version__
from .formats import CLASSES, EAGLE3


SUBFOLDER = "custom_generate"
PIP_NAME = "hf-eagle3"
# `import hf_eagle3` must stay at module level: transformers checks the file's imports and says what to install.
GENERATE = '''"""Speculative decoding with the draft of this repository: the same text, faster.

    target.generate(**inputs, custom_generate="{repository}", trust_remote_code=True)

Requires hf_eagle3 (`pip install {package}`). Without remote code:

    draft = hf_eagle3.{kind}.from_pretrained("{repository}").to(target.device, target.dtype)
    target.generate(**inputs, assistant_model=draft)
"""

import functools

import hf_eagle3


REPOSITORY = {repository!r}


@functools.lru_cache(maxsize=2)
def load(repository, device, dtype, **hub):
    draft = hf_eagle3.{kind}.from_pretrained(repository, dtype=dtype, **hub)
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
    """`model.generate` with this repository's draft; `draft` overrides the directory or Hub id it is loaded from."""
    if assistant_model is None:
        hub = {{"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}}
        assistant_model = load(draft, model.device, model.dtype, **hub)
    return model.generate(assistant_model=assistant_model, **kwargs)
'''


def write_custom_generate(folder: str | Path, repository: str, kind: str = CLASSES[EAGLE3]) -> None:
    """Write `custom_generate/` with its two files into `folder`, for a draft of class `kind` at a Hub id."""
    validate_repo_id(repository)  # it is inserted into source code
    subfolder = Path(folder) / SUBFOLDER
    subfolder.mkdir(parents=True, exist_ok=True)
    code = GENERATE.format(repository=repository, package=PIP_NAME, kind=kind)
    (subfolder / "generate.py").write_text(code, encoding="utf-8")
    (subfolder / "requirements.txt").write_text(f"{PIP_NAME}>={__version__}\n", encoding="utf-8")
