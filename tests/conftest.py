"""
Shared fixtures. A real small pair (stories260K and its draft) is used where `HF_EAGLE3_STORIES_PAIR` names its folder.
"""

import logging
import os
import sys
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


BETWEEN = ("transformers", "huggingface_hub", "torch", "logging", "functools", "contextlib", __name__.split(".")[0])


class _Deprecations(logging.Handler):
    """What transformers logs about names that will go, where this package used them and not the test."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        frame = sys._getframe() if "deprecated" in record.getMessage() else None
        while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in BETWEEN:
            frame = frame.f_back
        user = "" if frame is None else frame.f_globals.get("__name__", "")
        if user.startswith("hf_eagle3.") and user != "hf_eagle3.compat.hooks":  # there a call of the test's goes on
            self.texts.append(f"{user}: {record.getMessage()}")


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
