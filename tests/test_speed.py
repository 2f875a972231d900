"""Where a cycle's time goes, on a deep thin target (24 layers, 256 wide, random weights) as real targets are against
their one-layer drafts. Ratios within one run; nightly, since shared machines are noisy."""

import os
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import hf_eagle3


@pytest.mark.nightly
def test_a_cycle_is_spent_in_the_models():
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
    )
    target = AutoModelForCausalLM.from_config(config).eval()
    target.generation_config.eos_token_id = None
    draft = hf_eagle3.Eagle3DraftModel(hf_eagle3.Eagle3Config.from_target(target, draft_vocab_size=2048)).eval()
    inputs = {"input_ids": torch.randint(3, 4096, (1, 32)), "max_new_tokens": 65, "do_sample": False}
    shares, ratios = [], []
    for _ in range(5):  # the first is a warm-up
        start = time.perf_counter()
        target.generate(**inputs)
        plain_step = (time.perf_counter() - start) / 65
        with hf_eagle3.record() as stats:
            start = time.perf_counter()
            target.generate(**inputs, assistant_model=draft)
            seconds = time.perf_counter() - start
        phases = stats.phase_seconds
        shares.append((phases["verify_forward"] + phases["draft_forward"]) / (seconds - phases["prefill"]))
        ratios.append(phases["draft_forward"] / stats.num_iterations / plain_step)
    torch.set_num_threads(1)
    assert sorted(shares[1:])[2] >= 0.85, "time outside the two models"
    assert sorted(ratios[1:])[2] < 1.0, "all draft passes of a cycle cost more than a plain step"
