"""CPU time per token of the original EAGLE code and of this package: same weights, prompts and trees, T=0, in turns.

    python tests/measure_original.py CHECKOUT PYTHON [NUM_PROMPTS] [ROUNDS]

CHECKOUT is one of github.com/SafeAILab/EAGLE, PYTHON the interpreter of an environment of its own with transformers
4.53, accelerate, sentencepiece and this torch. Each side is a process with one thread. The embedded pair is exported
as that code reads it; three lines of a copy are changed, since it derives `head_dim`, which the pair's draft states.
Prints one line per round and the ratios, one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


NEW_TOKENS = 128
TREES = {"16/5/4": (17, 4, 4), "59/8/10": (60, 7, 10)}  # ours: theirs count the root and one level less
CHANGES = {
    "self.head_dim = self.hidden_size // self.num_heads": "self.head_dim = config.head_dim",
    "if (self.head_dim * self.num_heads) != self.hidden_size:": "if False:",
    "attn_output.reshape(bsz, q_len, self.hidden_size)": "attn_output.reshape(bsz, q_len, -1)",
}


def export_pair(folder: Path) -> list[list[int]]:
    """Write `target` and `draft` as the original code reads them; returns the prompts' ids."""
    from safetensors import safe_open

    from hf_eagle3.cli import main
    from hf_eagle3.embedded import DRAFT, TARGET, load_pair, prompts

    target, _, tokenizer = load_pair()
    target.save_pretrained(folder / "target")
    with safe_open(folder / "target" / "model.safetensors", "pt") as file:
        names = dict.fromkeys(file.keys(), "model.safetensors")
    (folder / "target" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    stored = json.loads((folder / "target" / "config.json").read_text())
    stored |= {"rope_theta": stored["rope_parameters"]["rope_theta"], "torch_dtype": "float32"}
    (folder / "target" / "config.json").write_text(json.dumps(stored))
    tokenizer.save_pretrained(folder / "target")
    options = json.loads((folder / "target" / "tokenizer_config.json").read_text())
    extra = options.pop("extra_special_tokens", [])
    options |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": extra}
    (folder / "target" / "tokenizer_config.json").write_text(json.dumps(options))
    arguments = ["--to", "plain", "--engine", "original", "--allow", "head-dim", "--target", str(TARGET)]
    if main(["convert", *arguments, str(DRAFT), str(folder / "draft")]):
        raise SystemExit("the draft could not be exported")
    texts = [[{"role": "user", "content": row["prompt"]}] for row in prompts()]
    return [tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=True)["input_ids"] for t in texts]


def serve(run) -> None:
    """Answer requests {"tree", "ids"} on stdin with [CPU seconds, tokens]; `run(tree, ids)` returns all ids."""
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.process_time()
        ids = run(request["tree"], request["ids"])
        answer = [time.process_time() - begun, len(ids) - len(request["ids"]), ids]
        sys.stdout.write("\n" + json.dumps(answer) + "\n")
        sys.stdout.flush()


def original(folder: str) -> None:
    """The process of the original code."""
    import torch

    sys.path.insert(0, folder)
    from eagle.model.ea_model import EaModel

    model = EaModel.from_pretrained(
        base_model_path=f"{folder}/target", ea_model_path=f"{folder}/draft", torch_dtype=torch.float32
    ).eval()

    def run(tree, ids):
        draft = model.ea_layer
        if tree is not None:
            draft.total_tokens, draft.depth, draft.top_k = tree[0] - 1, *tree[1:]
            draft.init_tree()
        call = model.naivegenerate if tree is None else model.eagenerate
        return call(torch.tensor([ids]), temperature=0.0, max_new_tokens=NEW_TOKENS)[0].tolist()

    serve(run)


def ours() -> None:
    """The process of this package."""
    import torch

    from hf_eagle3.embedded import load_pair

    target, draft, _ = load_pair()

    def run(tree, ids):
        options = {}
        if tree == "auto":
            options["assistant_model"] = draft.with_tree("auto")
        elif tree is not None:
            sizes = dict(zip(("num_draft_tokens", "tree_depth", "tree_top_k"), tree, strict=True))
            options["assistant_model"] = draft.with_tree("static", **sizes)
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)[0].tolist()

    serve(run)


def ask(process: subprocess.Popen, tree, ids: list[int]) -> list:
    """One call; lines that the original code prints are skipped."""
    process.stdin.write(json.dumps({"tree": tree, "ids": ids}) + "\n")
    process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("[") or not line.endswith("]\n"):
        if not line:
            raise SystemExit("a process ended: see above")
    return json.loads(line)


def main(checkout: str, python: str, num_prompts: int = 8, rounds: int = 2) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = export_pair(folder)[:num_prompts]
        (folder / "eagle" / "model").mkdir(parents=True)
        for file in Path(checkout, "eagle", "model").glob("*.py"):
            text = file.read_text()
            for old, new in CHANGES.items() if file.name == "cnets.py" else ():
                text = text.replace(old, new)
            (folder / "eagle" / "model" / file.name).write_text(text)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        theirs = subprocess.Popen([python, __file__, "--original", name], **pipes)
        here = subprocess.Popen([sys.executable, __file__, "--ours"], **pipes)
        cases = {"plain": (here, None), "original plain": (theirs, None), "auto": (here, "auto")}
        for label, tree in TREES.items():
            sizes = tuple(map(int, label.split("/")))
            cases |= {label: (here, sizes), f"original {label}": (theirs, tree)}
        for process, tree in cases.values():
            ask(process, tree, prompts[0])  # warm-up
        for _ in range(rounds):
            total = {case: [0.0, 0] for case in cases}
            for ids in prompts:
                for case, (process, tree) in cases.items():
                    seconds, tokens, _ = ask(process, tree, ids)
                    total[case] = [total[case][0] + seconds, total[case][1] + tokens]
            ms = {case: 1000 * seconds / tokens for case, (seconds, tokens) in total.items()}
            ratios = {label: ms[label] / ms[f"original {label}"] for label in TREES}
            ratios["auto, its defaults"] = ms["auto"] / ms["original 59/8/10"]
            sys.stdout.write(json.dumps({"ms per token": ms, "ratios": ratios}) + "\n")
            sys.stdout.flush()
        for process in (theirs, here):
            process.terminate()


if __name__ == "__main__":
    if sys.argv[1] == "--original":
        original(sys.argv[2])
    elif sys.argv[1] == "--ours":
        ours()
    else:
        main(*sys.argv[1:3], *map(int, sys.argv[3:]))
