"""Serving engines and the file formats that each one reads. Names only, so that importing this is cheap; the rules
about engines are in `engines.py`."""

VLLM, SGLANG, ORIGINAL, LLAMA_CPP = "vllm", "sglang", "original", "llama.cpp"
PLAIN, SPECULATORS = "plain", "speculators"
READERS = {PLAIN: (VLLM, SGLANG, ORIGINAL), SPECULATORS: (VLLM,)}
CONVERTERS = {PLAIN: (LLAMA_CPP,), SPECULATORS: ()}  # what they serve is made of these by a program of their own
NAMES = {VLLM: "vLLM", SGLANG: "SGLang", ORIGINAL: "the original EAGLE code", LLAMA_CPP: "llama.cpp"}
EAGLE3, BLOCK = "eagle3", "block_draft"  # kinds of drafts, as `model_type` of their configurations
CLASSES = {EAGLE3: "Eagle3DraftModel", BLOCK: "BlockDraftModel"}
