"""Run by an interpreter that has vLLM: `python engine_rules_vllm.py JOB.json OUT.jsonl`; see `engine_rules.py`.

One line per draft: the text's tokens and what was accepted, or the error. Many of them in one process, to import once;
it ends behind an error, after which vLLM 0.32 waits for ever.
"""

import gc
import json
import os
import sys

from vllm import LLM, SamplingParams, __version__
from vllm.distributed import cleanup_dist_env_and_memory


def serve(job: dict, draft: str) -> dict:
    speculative = {"method": "eagle3", "model": draft, "num_speculative_tokens": job["depth"]}
    llm = LLM(
        job["target"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=job["context"],
        max_num_batched_tokens=job["context"],
        max_num_seqs=1,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        disable_log_stats=False,
        speculative_config=speculative,
    )
    sampling = SamplingParams(temperature=0, max_tokens=job["max_new_tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    outputs = [llm.generate([prompt], sampling, use_tqdm=False)[0] for prompt in prompts]
    found = {metric.name: metric for metric in llm.get_metrics()}
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "cycles": found["vllm:spec_decode_num_drafts"].value,
        "accepted": list(found["vllm:spec_decode_num_accepted_tokens_per_pos"].values),
    }


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    for name, draft in job["drafts"].items():
        try:
            result = serve(job, draft)
        except Exception as error:  # whatever it is, it is the result
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        with open(sys.argv[2], "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "version": __version__, **result}) + "\n")
        if "error" in result:
            os._exit(0)
        gc.collect()
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
