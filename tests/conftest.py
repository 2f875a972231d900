"""
Shared fixtures. A real small pair (stories260K and its draft) is used where `HF_EAGLE3_STORIES_PAIR` names its folder.
"""

import logging
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_eagle3


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # for processes of their own
constants.HF_HUB_OFFLINE = True  # it was read when huggingface_hub was imported above
torch.set_num_threads(1)  # tiny models: threads only wait for each other
DATA = Path(__file__).parent / "data"
NEEDS_PAIR = "set HF_EAGLE3_STORIES_PAIR to a folder with target/ and draft/ of the stories260K pair"


class _Deprecations(logging.Handler):
    """What transformers says about arguments and names that will go; it logs them as often as it warns."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        text = record.getMessage()
        # "Passing" comes from transformers' own assistants, which give `generate` both.
        if "deprecated" in text and not text.startswith("Passing `generation_config` together"):
            self.texts.append(text)


@pytest.fixture(autouse=True)
def logged_warnings():
    """`logger.warning_once` says a thing once per test, and nothing deprecated is used."""
    logging.Logger.warning_once.cache_clear()
    handler, logger = _Deprecations(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert handler.texts == []


@pytest.fixture(scope="session")
def stories():
    """(target, draft, tokenizer) of the stories260K pair in float32."""
    folder = os.environ.get("HF_EAGLE3_STORIES_PAIR")
    if not folder:
        pytest.skip(NEEDS_PAIR)
    target = AutoModelForCausalLM.from_pretrained(f"{folder}/target", dtype=torch.float32).eval()
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(f"{folder}/draft", dtype=torch.float32).eval()
    return target, draft, AutoTokenizer.from_pretrained(f"{folder}/target")
