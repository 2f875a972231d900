"""A transformers of the future: its source is changed while it is imported, then `generate` is called with a draft.

`python tests/future_transformers.py CHANGE [VERSION]`, CHANGE a JSON list of [regular expression, replacement, part of
a module's name or ""]. Prints one JSON line: whether the text is plain generate's, what was logged, what stayed
patched. Runs in a process of its own.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import os
import re
import sys
from pathlib import Path


class Changed(importlib.machinery.SourceFileLoader):
    """Compiles the changed source; never reads or writes byte code."""

    changes: list[tuple[re.Pattern, str, str]] = []
    count = 0

    def get_code(self, fullname):
        source = Path(self.path).read_text(encoding="utf-8")
        for pattern, replacement, part in self.changes:
            if part in fullname:
                source, count = pattern.subn(replacement, source)
                Changed.count += count
        return compile(source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] != "transformers":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Changed(spec.loader.name, spec.loader.path)
        return spec


class Log(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def run(changes: list, version: str) -> dict:
    Changed.changes = [(re.compile(pattern), new, part) for pattern, new, part in changes]
    Changed.changes.append((re.compile(r'^__version__ = ".*"', re.MULTILINE), f'__version__ = "{version}"', ""))
    sys.meta_path.insert(0, Finder())
    of_file = importlib.util.spec_from_file_location

    def spec_from_file_location(name, location=None, **options):  # by which transformers imports itself once more
        if name.split(".")[0] == "transformers":
            options["loader"] = Changed(name, str(location))
        return of_file(name, location, **options)

    importlib.util.spec_from_file_location = spec_from_file_location
    import torch

    torch.set_num_threads(1)
    from transformers import LlamaConfig, LlamaForCausalLM

    import hf_eagle3
    from hf_eagle3 import vocabulary
    from hf_eagle3.compat import guard, hooks
    from hf_eagle3.generation.verify import attention

    log = Log()
    logging.getLogger("transformers").addHandler(log)
    logging.getLogger("hf_eagle3").addHandler(log)
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
    torch.manual_seed(0)
    target = LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=None)).eval()
    draft = hf_eagle3.Eagle3DraftModel(hf_eagle3.Eagle3Config.from_target(target, draft_vocab_size=8)).eval()
    with torch.no_grad():
        for parameter in (*target.parameters(), *draft.parameters()):
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        target.lm_head.weight[:-8] *= 0.3
    offsets, mask = vocabulary.mapping_from_target_ids(torch.arange(16, 24), 24)
    draft.d2t.copy_(offsets)
    draft.t2d.copy_(mask)
    ids = torch.randint(3, 24, (2, 9))
    calls = [{"do_sample": False}, {"do_sample": True, "temperature": 1.4, "top_k": 9}, {"do_sample": False}]
    texts, speculated = [], 0
    for assistant in ({}, {"assistant_model": draft}):
        torch.manual_seed(1)
        with hf_eagle3.record() as stats:
            texts.append([target.generate(ids, max_new_tokens=20, **call, **assistant).tolist() for call in calls])
        speculated = sum(map(sum, stats.accepted_tokens))
    modules = [module for part in (target, draft) for module in part.modules()]
    return {
        "same": texts[0] == texts[1],
        "accepted": speculated,
        "changed": Changed.count - 1,
        "warnings": [text for text in log.texts if "hf_eagle3" in text],
        "patched": sorted([*hooks._OWN, *attention._WRAPPED_NAMES]),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
        "strict": os.environ.get(guard.STRICT, ""),
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "5.99.0")))
