"""`hf-eagle3 doctor`: why a draft accepts few tokens, as a verdict with the override to write.

Exit status: 0 for a sound pair, 1 for one that is not, 2 for mistakes in the command line.
"""

import argparse
import json
import math
import textwrap
from collections import Counter

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compat.contract import contract_table
from ..compat.models import attention_name
from ..compat.versions import is_proved, transformers_version
from ..doctor.diagnosis import UNSOUND, WEAK, diagnose
from ..doctor.measure import Acceptance, Evidence, plain_answers
from ..draft_model import DraftModel
from ..drafters.block import BlockDraftModel
from ..errors import UserError
from ..fitting import fit_notes
from ..generation.stats import record
from ..hub.trained import THINKING
from ..known_defects import defects_of
from ..model_loading import load_draft, load_target, load_tokenizer, tokenizer_note
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.target import check_fit
from .inputs import encode
from .parsing import installed
from .tables import show_pairs


PROMPTS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that merges two sorted lists.",
    "A train travels 60 kilometres in 45 minutes. How fast is it on average? Think step by step.",
    "Tell a short story about a lighthouse keeper and a lost dog.",
)
RUNS = {"": "plain steps", "tree": "trees", "chain": "chains", "plain": "plain steps"}
TEMPLATE_GAIN = 1.25  # other prompts give other answers: only a large gain says something


def run(arguments: argparse.Namespace) -> int:
    target = load_target(arguments.target, dtype=arguments.dtype, device=arguments.device)
    tokenizer = load_tokenizer(arguments.target)
    report = {"target": arguments.target, "draft": arguments.draft, "environment": environment(target)}
    try:
        draft = load_draft(arguments.draft, target)
        check_fit(target.config.get_text_config(decoder=True), draft.config)
    except ValueError as error:
        report |= {"sound": False, "verdict": f"Not sound: the draft cannot be used with this target. {error}"}
    else:
        if type(draft) not in (Eagle3DraftModel, BlockDraftModel):
            what = f"`--draft` {arguments.draft} is a {type(draft).__name__}"
            raise UserError(
                f"{what}; only EAGLE-3 drafts and block drafters are examined. Measure it with `hf-eagle3 benchmark`."
            )
        notes = [*fit_notes(target.config, draft.config), tokenizer_note(arguments.draft, tokenizer)]
        notes += [f"Known defect, replaced when loading: {defect}." for defect in defects_of(arguments.draft)]
        report["notes"] = [note for note in notes if note is not None]
        report |= examine(target, draft, tokenizer, arguments)
    if arguments.json:
        print(json.dumps(report))
    else:
        show_report(report)
    return 0 if report["sound"] else 1


def examine(
    target: PreTrainedModel,
    draft: DraftModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
) -> dict:
    """Measurement, repairs and verdict by JSON key."""
    depth = min(arguments.depth, draft.config.num_predictions if isinstance(draft, BlockDraftModel) else math.inf)

    def evidence(raw: bool, template_kwargs: dict | None) -> tuple[list[dict], Evidence]:
        texts = arguments.prompt or PROMPTS
        prompts = [encode(tokenizer, text, raw, target.device, template_kwargs) for text in texts]
        return prompts, Evidence(target, plain_answers(target, prompts, arguments.max_new_tokens), depth)

    given = arguments.chat_template_kwargs
    prompts, measured_on = evidence(arguments.raw, given)
    found = diagnose(draft, target.config, measured_on)
    best = found.repairs[-1][0].draft if found.repairs else draft
    out = {
        "sound": found.is_sound,
        "verdict": found.verdict,
        "kind": type(draft).__name__,
        "positions": len(measured_on.starts),
        "acceptance": acceptance(found.before),
        "repairs": [described(repair, after) for repair, after in found.repairs],
        "tried": [{"kind": kind, "what": what, "acceptance_length": round(tau, 3)} for kind, what, tau in found.tried],
    }
    if found.after.rates[0] < WEAK and tokenizer.chat_template is not None:
        for what, raw, kwargs in other_templates(tokenizer, arguments.raw, given):
            other = evidence(raw, kwargs)[1].measure(best)
            out["tried"].append(
                {"kind": "template", "what": what, "acceptance_length": round(other.acceptance_length, 3)}
            )
            if other.rates[0] >= UNSOUND and 1 + other.mean >= TEMPLATE_GAIN * (1 + found.after.mean):
                out["sound"] = False
                out["verdict"] = (
                    f"Not sound with these prompts: {what}, the acceptance length is {other.acceptance_length:.2f} "
                    f"instead of {found.after.acceptance_length:.2f}. Use the template of the draft's training data."
                )
                out["repairs"].append({"kind": "template", "what": what, "acceptance": acceptance(other)})
    return out | {"auto": auto_choices(target, draft, prompts[0], arguments.max_new_tokens)}


def other_templates(tokenizer, raw: bool, given: dict | None) -> list[tuple[str, bool, dict | None]]:
    """(what, raw, template arguments) of the other ways to render the prompts."""
    if raw:
        return [("with the chat template", False, None)]
    out = []
    if THINKING in str(tokenizer.chat_template):
        for value in (True, False):
            if (given or {}).get(THINKING) is not value:
                what = "with" if value else "without"
                out.append((f"{what} thinking ({THINKING}={value})", False, {**(given or {}), THINKING: value}))
    return [*out, ("without the chat template", True, None)]


def acceptance(measured: Acceptance) -> dict:
    return {
        "acceptance_length": round(measured.acceptance_length, 3),
        "acceptance_rates": [None if rate != rate else round(rate, 3) for rate in measured.rates],
    }


def described(repair, after: Acceptance) -> dict:
    """A repair with the source text that makes it permanent."""
    out = {"kind": repair.kind, "what": repair.what, "acceptance": acceptance(after)}
    if repair.overrides:
        out["overrides"] = repair.overrides
    if repair.statement:
        out["statement"] = repair.statement
    return out


def environment(target: PreTrainedModel) -> dict:
    """Versions, attention, and whether this transformers keeps its side of the contract."""
    rows = contract_table()
    failing = [row.point for row in rows if not row.holds]
    return {
        "versions": {name: installed(name) for name in ("hf-eagle3", "transformers", "torch")},
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": attention_name(target.config.get_text_config(decoder=True)),
        "contract": f"{len(rows) - len(failing)} of {len(rows)} points hold with transformers {transformers_version}"
        + ("" if is_proved() else " (newer than the last proved version)"),
        "contract_failures": failing,
    }


@torch.no_grad()
def auto_choices(target: PreTrainedModel, draft: DraftModel, inputs: dict, max_new_tokens: int) -> dict:
    """What the tree mode "auto" does on the first prompt."""
    with record() as stats:
        target.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, assistant_model=draft.with_tree("auto")
        )
    chosen = Counter((choice.levels, choice.nodes) for choice in stats.choices)
    return {
        "mode": stats.mode,
        "reason": stats.reason,
        "acceptance_length": round(stats.acceptance_length, 3) if stats.num_cycles else None,
        "choices": [
            {"levels": levels, "nodes": nodes, "cycles": count} for (levels, nodes), count in chosen.most_common(4)
        ],
    }


def show_report(report: dict) -> None:
    """Print the report: the verdict first."""
    print("\n".join(textwrap.wrap(report["verdict"], 100)) + "\n")
    place = report["environment"]
    rows = []
    if "acceptance" in report:
        rates = report["acceptance"]["acceptance_rates"]
        shown = "  ".join(f"{n}: {'-' if rate is None else f'{rate:.0%}'}" for n, rate in enumerate(rates))
        rows.append(("acceptance by depth", f"{shown}  ({report['positions']} positions)"))
        rows.append(("acceptance length", f"{report['acceptance']['acceptance_length']:.2f}"))
    for repair in report.get("repairs", ()):
        rows.append(("repair", f"{repair['what']}: {repair['acceptance']['acceptance_length']:.2f}"))
    for tried in report.get("tried", ()):
        rows.append(("tried", f"{tried['acceptance_length']:.2f}  {tried['what']}"))
    rows += [("note", note) for note in report.get("notes", ())]
    if "auto" in report:
        auto = report["auto"]
        rows.append(("target runs", f"{RUNS[auto['mode']]} ({auto['reason']})"))
        for choice in auto["choices"]:
            what = f"{choice['nodes']} nodes of {choice['levels']} levels" if choice["levels"] else "plain steps"
            rows.append(("auto decided", f"{choice['cycles']} cycles: {what}"))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in place["versions"].items())))
    rows.append(("target", f"{place['dtype']} on {place['device']}, attention {place['attention']}"))
    rows.append(("contract", place["contract"]))
    rows += [("fails", point) for point in place["contract_failures"]]
    show_pairs(rows)
    for line in permanent(report):
        print(line)


def permanent(report: dict) -> list[str]:
    """How to keep the repairs: arguments of `from_pretrained`, and a repaired copy."""
    repairs = report.get("repairs", ())
    overrides = {name: value for repair in repairs for name, value in repair.get("overrides", {}).items()}
    statements = [repair["statement"] for repair in repairs if "statement" in repair]
    if not overrides and not statements:
        return []
    arguments = "".join(f", {name}={value}" for name, value in overrides.items())
    return [
        "",
        "To keep it, load the draft with these arguments, and save the repaired copy if you like:",
        "",
        f'    draft = hf_eagle3.{report["kind"]}.from_pretrained("{report["draft"]}"{arguments})',
        *(f"    {statement}" for statement in statements),
        '    draft.save_pretrained("repaired")',
    ]
