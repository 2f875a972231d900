"""One draft per rule of `hub/engines.py` that vLLM can confirm or refute, served by it and by us.

`python tests/engine_rules.py VLLM_PYTHON [NAME ...]` prints a line per draft; `test_engine_rules.py` runs it nightly.
Each draft is the embedded one with a change that vLLM must take over to accept what we accept.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_eagle3 import Eagle3DraftModel, embedded
from hf_eagle3.cli.inputs import encode
from hf_eagle3.engines.verify import DEPTH, run_here
from hf_eagle3.engines.vllm_server import ENVIRONMENT
from hf_eagle3.hub.engines import RULE_NAMES
from hf_eagle3.hub.export import ExportTarget, export
from hf_eagle3.hub.formats import PLAIN, SPECULATORS


DRIVER = Path(__file__).parent / "engine_rules_vllm.py"
SAME, DIFFERS, ERROR = "same", "differs", "error"
NUM_PROMPTS, NEW_TOKENS = 4, 48


@dataclass(frozen=True)
class Case:
    """A draft that breaks a rule, or one of which the rules say that vLLM serves it."""

    expected: str  # what the rules say
    fields: dict = field(default_factory=dict)
    dialect: str = PLAIN
    order: tuple[int, ...] | None = None  # of the tapped layers, with the columns of `fc`
    without_ids: bool = False  # no layer ids in the file


OTHER_TAPS = [2, 12, 21]
CASES = {
    "sound": Case(SAME),
    "sound-speculators": Case(SAME, dialect=SPECULATORS),
    # rules about vLLM
    "tapped-layers-unknown": Case(DIFFERS, {"target_layer_ids": OTHER_TAPS}, without_ids=True),
    "tapped-layers-order": Case(DIFFERS, order=(2, 1, 0)),
    "qk-norm-dialect": Case(ERROR, {"use_qk_norm": True}),
    "qk-norm-bias": Case(DIFFERS, {"use_qk_norm": True, "attention_bias": True}, SPECULATORS),
    "no-lm-head-mapping": Case(DIFFERS, {"has_lm_head": False}),
    "hidden-act": Case(ERROR, {"hidden_act": "gelu"}),
    # rules about others, whose remedy is to serve it with vLLM
    "tapped-layers-fixed": Case(SAME, {"target_layer_ids": OTHER_TAPS}),
    "norm-before-residual": Case(SAME, {"norm_before_residual": True}),
    "qk-norm": Case(SAME, {"use_qk_norm": True}, SPECULATORS),
    "attention-bias": Case(SAME, {"attention_bias": True}),
    "mlp-bias": Case(SAME, {"mlp_bias": True}),
    "several-layers": Case(SAME, {"num_hidden_layers": 2}),
    "embed-trained": Case(SAME, {"has_embed_tokens": True, "embed_trained": True}),
    "norms-of-later-drafts, norm_before_fc": Case(SAME, {"norm_before_fc": True}),
    "norms-of-later-drafts, fc_norm": Case(SAME, {"fc_norm": True}),
    "norms-of-later-drafts, norm_output": Case(SAME, {"norm_output": True}),
    "number-of-tapped-layers": Case(SAME, {"target_layer_ids": [1, 6, 11, 16, 20], "num_tapped_layers": 5}),
    "sliding-window": Case(SAME, {"sliding_window": 16}),
    "scaled-rope": Case(SAME, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
}


def changed_draft(case: Case) -> Eagle3DraftModel:
    """The embedded draft with the change; parameters that it does not have are seeded noise of a visible size."""
    draft = Eagle3DraftModel.from_pretrained(embedded.DRAFT, dtype=torch.float32)
    torch.manual_seed(0)
    out = Eagle3DraftModel(draft.config.changed(case.fields)).eval()
    stored = draft.state_dict()
    if case.fields.get("embed_trained"):
        rows = embedded.load_pair()[0].get_input_embeddings().weight
        stored["embed_tokens.weight"] = rows + 0.3 * rows.std() * torch.randn_like(rows)
    wanted = out.state_dict()
    if "fc.weight" in stored and stored["fc.weight"].shape != wanted["fc.weight"].shape:
        low, middle, high = stored["fc.weight"].chunk(3, dim=1)
        stored["fc.weight"] = torch.cat((low, low / 3, middle, high / 3, high), dim=1)
    if case.order is not None:
        chunks = stored["fc.weight"].chunk(3, dim=1)
        stored["fc.weight"] = torch.cat([chunks[i] for i in case.order], dim=1)
        out.config = out.config.changed({"target_layer_ids": [draft.config.target_layer_ids[i] for i in case.order]})
    for name, tensor in wanted.items():
        if name in stored:
            tensor.copy_(stored[name])
        elif name.endswith("bias"):
            tensor.copy_((1.0 if "mlp" in name else 0.2) * torch.randn_like(tensor))
        elif name.startswith("layers.") and ("o_proj" in name or "down_proj" in name):
            tensor.mul_(4)
        elif "norm" in name:
            tensor.copy_(1 + 0.2 * torch.randn_like(tensor))
    return out


def write(name: str, case: Case, draft: Eagle3DraftModel, folder: Path) -> Path:
    """The draft's file for vLLM, although rules forbid it."""
    out = folder / name.replace(", ", "-")
    target = ExportTarget.load(str(embedded.TARGET), "hf-eagle3/embedded")
    export(draft, out, case.dialect, target, allow=RULE_NAMES)
    if case.without_ids:
        path = out / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("eagle_aux_hidden_state_layer_ids")
        config.pop("eagle_config")
        path.write_text(json.dumps(config), encoding="utf-8")
    return out


def serve(python: str, job: dict, folder: Path) -> list[dict]:
    """vLLM's results, one per draft."""
    results, lines, drafts = folder / "results.jsonl", [], job["drafts"]
    while len(lines) < len(drafts):
        done = {line["name"] for line in lines}
        left = job | {"drafts": {name: path for name, path in drafts.items() if name not in done}}
        (folder / "job.json").write_text(json.dumps(left), encoding="utf-8")
        with Path(tempfile.gettempdir(), "hf-eagle3-rules.log").open("ab") as log:
            command = [python, str(DRIVER), str(folder / "job.json"), str(results)]
            subprocess.run(command, stdout=log, stderr=log, env=ENVIRONMENT | os.environ, check=True)
        before, lines = len(lines), [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        if len(lines) == before:
            raise RuntimeError(f"vLLM ended without a result for {next(iter(left['drafts']))}.")
    return lines


def measure(python: str, names: list[str]) -> dict[str, dict]:
    """By case: `found` (same, differs, error), `ours` and `theirs` accepted at each position, vLLM's version."""
    target, _, tokenizer = embedded.load_pair()
    rows = embedded.prompts()[:NUM_PROMPTS]
    prompts = [encode(tokenizer, row["prompt"], False, "cpu")["input_ids"][0].tolist() for row in rows]
    drafts = {name: changed_draft(CASES[name]) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        job = {"target": str(embedded.TARGET), "prompts": prompts, "max_new_tokens": NEW_TOKENS, "depth": DEPTH}
        job["context"] = max(map(len, prompts)) + NEW_TOKENS + DEPTH + 1
        job["drafts"] = {name: str(write(name, CASES[name], draft, Path(folder))) for name, draft in drafts.items()}
        lines = serve(python, job, Path(folder))
    out = {}
    for line in lines:
        ours = run_here(target, drafts[line["name"]], prompts, NEW_TOKENS)
        accepted = [round(rate * ours.cycles) for rate in ours.rates]
        one = {"ours": [ours.cycles, *accepted], "version": line["version"]}
        if "error" in line:
            one |= {"found": ERROR, "theirs": line["error"]}
        else:
            one["theirs"] = [int(line["cycles"]), *map(int, line["accepted"])]
            is_same = line["tokens"] == ours.tokens and one["theirs"] == one["ours"]
            one["found"] = SAME if is_same else DIFFERS
            one["same_text"] = line["tokens"] == ours.tokens
        out[line["name"]] = one
    return out


if __name__ == "__main__":
    for name, result in measure(sys.argv[1], sys.argv[2:] or list(CASES)).items():
        sys.stdout.write(json.dumps({"name": name, "expected": CASES[name].expected, **result}) + "\n")
