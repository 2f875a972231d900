"""The pair shipped with the package: a small, deep Llama and its draft, for demos and measurements offline.

Its card is the README.md in this folder: training text, licences, figures, how to reproduce it.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_eagle3 import Eagle3DraftModel


FOLDER = Path(__file__).parent
TARGET, DRAFT, PROMPTS = FOLDER / "target", FOLDER / "draft", FOLDER / "prompts.jsonl"


def load_pair(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Eagle3DraftModel, PreTrainedTokenizerBase]:
    """(target, draft, tokenizer) of the embedded pair, the models in evaluation mode."""
    target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=dtype).to(device).eval()
    draft = Eagle3DraftModel.from_pretrained(DRAFT, dtype=dtype).to(device).eval()
    return target, draft, AutoTokenizer.from_pretrained(TARGET)


def prompts(domain: str | None = None) -> list[dict[str, str]]:
    """Held-out prompts ({"domain", "prompt"}) of one domain ("math", "code", "roleplay"), or of all, interleaved."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if domain in (None, row["domain"])]
