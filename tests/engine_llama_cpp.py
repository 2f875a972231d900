"""Run by an interpreter that has xllamacpp (llama.cpp as a package): `python engine_llama_cpp.py JOB.json OUT.json`.

Text of each prompt, with what was drafted and accepted, from llama.cpp's own server; see `test_engines.py`.
"""

import json
import sys

import xllamacpp
from xllamacpp import CommonParams, Server, common_speculative_type, ggml_type


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    params = CommonParams()
    params.model.path = job["target"]
    params.n_ctx, params.n_parallel = job["context"], 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.speculative.types = [common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3]
    draft = params.speculative.draft
    draft.mparams.path, draft.n_max, draft.n_min, draft.p_min = job["draft"], job["depth"], 0, 0.0
    draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = job["threads"]
    draft.cache_type_k = draft.cache_type_v = ggml_type.GGML_TYPE_F32
    server = Server(params)
    answers = []
    for prompt in job["prompts"]:
        body = {"prompt": prompt, "n_predict": job["max_new_tokens"], "temperature": 0, "cache_prompt": False}
        answer = server.handle_completions(body)
        answers.append({"text": answer["choices"][0]["text"], **answer["timings"]})
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump({"version": xllamacpp.__version__, "answers": answers}, file)


if __name__ == "__main__":
    main()
