"""A draft beyond the length that it was trained on: acceptance length, drafting cost, draft windows.

    python tests/measure_long_contexts.py cost
    python tests/measure_long_contexts.py tau [LENGTH ...] [--real]

Draft and target of the embedded pair were trained on 512 tokens, and the target's positions end at 1,024: beyond, its
text is noise. So the same weights run as a Mistral with a sliding window of 512 tokens, which writes text at any
length (`--real`: the target as it is). Contexts are other held-out questions with the target's own answers, then a
question. One thread, CPU time; one JSON object per line.
"""

import json
import sys
import time

import torch
from transformers import MistralConfig, MistralForCausalLM

import hf_eagle3
from hf_eagle3.embedded import load_pair, prompts
from hf_eagle3.generation.draft.eagle3 import Eagle3Drafter
from hf_eagle3.generation.draft.interface import DraftInputs, Roots
from hf_eagle3.generation.stats import PhaseTimer, new_stats
from hf_eagle3.generation.tree.policy import FixedPolicy
from hf_eagle3.target.target import Target


TRAINED_ON, NEW_TOKENS, NUM_PROMPTS = 512, 96, 5
WINDOWS = (0, 512, 256, 128)
SIZES = {"num_draft_tokens": 16, "tree_depth": 5, "tree_top_k": 4}


def windowed(target) -> MistralForCausalLM:
    """The same weights with a sliding window."""
    fields = {name: value for name, value in target.config.to_dict().items() if name in MistralConfig().to_dict()}
    for name in ("architectures", "model_type", "transformers_version"):
        fields.pop(name, None)
    out = MistralForCausalLM(
        MistralConfig(**fields | {"sliding_window": TRAINED_ON, "max_position_embeddings": 65536})
    )
    out.load_state_dict(target.state_dict())
    out.generation_config = target.generation_config
    return out.eval()


def turns(target, draft, tokenizer) -> list[tuple[list[int], list[int]]]:
    """(question, answer) in token ids."""
    out = []
    for row in prompts():
        message = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        inputs = torch.tensor([ids])
        answer = target.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=200, do_sample=False, assistant_model=draft
        )[0, len(ids) :].tolist()
        out.append((ids, answer if answer[-1] == tokenizer.eos_token_id else [*answer, tokenizer.eos_token_id]))
    return out


def context(turns: list, question: int, length: int) -> torch.Tensor:
    """`length` tokens that end with a question."""
    ids, i = list(turns[question][0]), question
    while len(ids) < length:
        i = (i + 7) % len(turns)
        if i != question:
            ids = [*turns[i][0], *turns[i][1], *ids]
    return torch.tensor([ids[-length:]])


def measure_tau(lengths: list[int], is_real: bool) -> None:
    """Committed tokens per cycle at the end of contexts of `lengths` tokens."""
    target, draft, tokenizer = load_pair()
    known = turns(target, draft, tokenizer)
    model = target if is_real else windowed(target)
    call = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    for length in lengths:
        committed = {window: [0, 0] for window in WINDOWS}
        for question in range(0, 4 * NUM_PROMPTS, 4):
            inputs = context(known, question, length - NEW_TOKENS)
            for window in WINDOWS:
                view = draft.with_tree("static", draft_window=window, **SIZES)
                with hf_eagle3.record() as stats:
                    model.generate(inputs, attention_mask=torch.ones_like(inputs), assistant_model=view, **call)
                committed[window][0] += stats.num_committed_tokens
                committed[window][1] += stats.num_cycles
        tau = {window or "all": round(tokens / cycles, 2) for window, (tokens, cycles) in committed.items()}
        sys.stdout.write(
            json.dumps({"length": length, "target": "real" if is_real else "windowed", "tau": tau}) + "\n"
        )
        sys.stdout.flush()


@torch.no_grad()
def measure_cost(contexts: tuple[int, ...] = (512, 8192), window: int = 512, rounds: int = 40) -> None:
    """Milliseconds of a cycle's drafting: three committed tokens are read and a tree is grown."""
    target, draft, _ = load_pair()
    policy = FixedPolicy(draft.with_tree("static", **SIZES).tree_config)
    torch.manual_seed(0)

    def inputs(first: int, count: int) -> DraftInputs:
        slots = torch.arange(first, first + count)[None]
        features = torch.randn(1, count, draft.config.fused_features_size)
        return DraftInputs(slots % draft.config.vocab_size, features, slots, slots, [count], first + count - 1, first)

    drafters = {}
    for length in contexts:
        for limit in (0, window):
            timer = PhaseTimer(new_stats().phase_seconds, False)
            drafter = Eagle3Drafter(draft, Target(target, draft.config), 1, timer, draft_window=limit)
            drafter.read(inputs(0, length))
            drafter.length = length
            drafters[length, limit] = drafter
    seconds = {key: [] for key in drafters}
    for _ in range(rounds):
        for key, drafter in drafters.items():
            drafter.extend(inputs(drafter.length, 3))
            drafter.length += 3
            begun = time.process_time()
            drafter.grow(Roots(torch.tensor([5]), [drafter.length - 1], [0], [0]), 5, policy)
            seconds[key].append(time.process_time() - begun)
    middle = {key: sorted(values)[rounds // 2] for key, values in seconds.items()}
    for limit in (0, window):
        ms = {length: round(1000 * middle[length, limit], 2) for length in contexts}
        ratio = round(middle[contexts[-1], limit] / middle[contexts[0], limit], 2)
        sys.stdout.write(json.dumps({"window": limit or "all", "ms": ms, "ratio": ratio}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "cost":
        measure_cost()
    else:
        lengths = [int(value) for value in sys.argv[2:] if value != "--real"]
        measure_tau(lengths or [TRAINED_ON * factor for factor in (1, 2, 4, 8)], "--real" in sys.argv)
