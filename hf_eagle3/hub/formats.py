"""The engines that serve drafts and the file formats that each one reads. Names only, so that listing them imports
nothing; what an engine does with a draft is in `engines.py`."""

VLLM, SGLANG, ORIGINAL = "vllm", "sglang", "original"
PLAIN, SPECULATORS = "plain", "speculators"
READERS = {PLAIN: (VLLM, SGLANG, ORIGINAL), SPECULATORS: (VLLM,)}
NAMES = {VLLM: "vLLM", SGLANG: "SGLang", ORIGINAL: "the original EAGLE code"}
