"""One process of a tensor-parallel run that test_loading.py starts: text with and without a draft, printed as JSON.

`python -m torch.distributed.run --nproc-per-node=2 tests/tensor_parallel_run.py FOLDER` (FOLDER holds a target)
"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig


torch.set_num_threads(1)
sys.path.insert(0, os.path.dirname(__file__))
from models import left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING

import hf_eagle3
from hf_eagle3.target.parts import is_sharded


def parallel_options() -> dict:
    try:
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    except TypeError:  # older transformers
        return {"tp_plan": "auto"}


def main() -> None:
    whole = tiny_target()
    target = AutoModelForCausalLM.from_pretrained(sys.argv[1], **parallel_options()).eval()
    target.generation_config = whole.generation_config
    found = {"is_sharded": is_sharded(target), "same": [], "accepted": 0, "choices": 0}
    bare, own = tiny_draft(whole, has_lm_head=False), tiny_draft(whole)
    for draft, options in ((bare, {"do_sample": False}), (own, SAMPLING), (own.with_tree("auto"), SAMPLING)):
        texts = []
        for assistant in (None, draft):
            torch.manual_seed(0)
            inputs = left_padded([13, 4, 9])
            with hf_eagle3.record() as stats:
                texts.append(target.generate(**inputs, max_new_tokens=15, assistant_model=assistant, **options))
        found["same"].append(torch.equal(*texts))
        found["accepted"] += sum(map(sum, stats.accepted_tokens))
        found["choices"] += len(stats.choices)
    sys.stdout.write(f"FOUND {json.dumps(found)}\n")
    torch.distributed.destroy_process_group()  # a process that ends with its process group open may be aborted


if __name__ == "__main__":
    main()
