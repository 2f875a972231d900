"""What compiling gains on a CPU: `python tests/measure_compiled.py` prints one JSON line.

The pair that ships, float32, a static tree of 24 nodes in 6 levels; CPU time of one thread (other processes do not
count) per step of plain generate and per cycle of ours, in turns, median of the rounds. The text must be the same.
"""

import json
import sys
import time
from statistics import median

import torch
from transformers import CompileConfig

import hf_eagle3
from hf_eagle3 import embedded


ROUNDS, WARM_UPS, NEW_TOKENS = 8, 2, 128


def main() -> None:
    torch.set_num_threads(1)
    target, draft, tokenizer = embedded.load_pair()
    draft = draft.with_tree("static", num_draft_tokens=24, tree_depth=6, tree_top_k=6)
    target.generation_config.eos_token_id = None
    inputs = tokenizer(embedded.prompts("math")[0]["prompt"], return_tensors="pt")
    static, config = {"cache_implementation": "static"}, CompileConfig()
    config._compile_all_devices = True
    compiled = static | {"compile_config": config}
    ways = {
        "plain": {},
        "plain, compiled": compiled,
        "ours": {"assistant_model": draft},
        "ours, static shapes": static | {"assistant_model": draft},
        "ours, compiled": compiled | {"assistant_model": draft},
    }

    def call(count: int, options: dict) -> tuple[float, int, list[int]]:
        with hf_eagle3.record() as stats:
            start = time.process_time()
            out = target.generate(**inputs, **options, max_new_tokens=count + 1, do_sample=False)
            return time.process_time() - start, stats.num_iterations or count, out[0].tolist()

    milliseconds: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(-WARM_UPS, ROUNDS):
        texts = []
        for way, options in ways.items():
            prompt, _, _ = call(0, options)
            seconds, passes, text = call(NEW_TOKENS, options)
            texts.append(text)
            if repetition >= 0:
                milliseconds[way].append(1000 * (seconds - prompt) / passes)
        if any(text != texts[0] for text in texts):
            raise RuntimeError("The texts differ.")
    found = {way: round(median(values), 2) for way, values in milliseconds.items()}
    sys.stdout.write(json.dumps({"cpu_milliseconds_per_pass": found, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
