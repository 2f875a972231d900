"""Serving engines and the file formats that each reads. Names only, so that importing this is cheap; the rules about
engines are in `engines.py`."""

VLLM, SGLANG, ORIGINAL = "vllm", "sglang", "original"
PLAIN, SPECULATORS = "plain", "speculators"
READERS = {PLAIN: (VLLM, SGLANG, ORIGINAL), SPECULATORS: (VLLM,)}
NAMES = {VLLM: "vLLM", SGLANG: "SGLang", ORIGINAL: "the original EAGLE code"}
EAGLE3, BLOCK = "eagle3", "block_draft"  # kinds of drafts, as `model_type` of their configurations
CLASSES = {EAGLE3: "Eagle3DraftModel", BLOCK: "BlockDraftModel"}
