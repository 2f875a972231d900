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


@pytest.fixture(autouse=True)
def warnings_of_other_tests_do_not_count():
    """`logger.warning_once` says a thing once per process; here, once per test."""
    logging.Logger.warning_once.cache_clear()


@pytest.fixture(scope="session")
def stories():
    """(target, draft, tokenizer) of the stories260K pair in float32."""
    folder = os.environ.get("HF_EAGLE3_STORIES_PAIR")
    if not folder:
        pytest.skip(NEEDS_PAIR)
    target = AutoModelForCausalLM.from_pretrained(f"{folder}/target", dtype=torch.float32).eval()
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(f"{folder}/draft", dtype=torch.float32).eval()
    return target, draft, AutoTokenizer.from_pretrained(f"{folder}/target")
