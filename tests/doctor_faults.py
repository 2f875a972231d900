"""Pairs, sound and with one seeded fault each, for `test_doctor.py`."""

import copy
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from training_setup import trainer

from hf_eagle3 import Eagle3DraftModel, embedded
from hf_eagle3.doctor.diagnosis import diagnose
from hf_eagle3.doctor.measure import Evidence, plain_answers
from hf_eagle3.doctor.repairs import view_of
from hf_eagle3.training import count_tokens, new_draft


OPENINGS = ("Once upon a time", "Lily and Tom", "The dog was", "One day, a little", "There was a big", "Mom said")
SCALE = 2.0**14  # of hidden states: beyond float16, without effect in float32


def embedded_pair():
    """(target, draft, prompts) of the pair that ships."""
    target, draft, tokenizer = embedded.load_pair()
    chats = [[{"role": "user", "content": row["prompt"]}] for row in embedded.prompts()]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return target, draft, [tokenizer.apply_chat_template(chat, **options) for chat in chats]


def opening_prompts(tokenizer) -> list[dict]:
    return [tokenizer(opening, return_tensors="pt") for opening in OPENINGS]


def trained_pair(stories, seed: int, **fields):
    """A draft trained for a minute on what the stories target writes."""
    target, _, tokenizer = stories
    torch.manual_seed(seed)
    ids = tokenizer(list(OPENINGS) * 24, return_tensors="pt", padding=True, padding_side="left")
    texts = target.generate(**ids, max_new_tokens=64, do_sample=True, temperature=0.7, top_k=0)
    width = ids["input_ids"].shape[1]
    lengths = ids["attention_mask"].sum(1).tolist()
    rows = [row[width - length :] for row, length in zip(texts, lengths, strict=True)]
    samples = {"input_ids": [row.tolist() for row in rows], "loss_mask": [[1] * len(row) for row in rows]}
    data = Dataset.from_dict(samples)
    sizes = {"intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    counts = count_tokens(data, target.config.vocab_size)
    draft = new_draft(target, 320, counts, target_layer_ids=[1, 2, 3], **sizes | fields)
    run = trainer(tempfile.mkdtemp(), target, draft, data, max_steps=250, training_time_test_steps=4, logging_steps=50)
    run.train()
    return target, run.model.eval(), opening_prompts(tokenizer)


def evidence_of(target, prompts, max_new_tokens: int = 96, depth: int = 5) -> Evidence:
    return Evidence(target, plain_answers(target, prompts, max_new_tokens), depth)


# -- faults: each returns the draft as a faulty file would make it, or `None` where it cannot be had -----


def shifted_taps(draft, by: int):
    ids = [i + by for i in draft.config.target_layer_ids]
    return None if min(ids) < 0 else view_of(draft, target_layer_ids=ids)


def foreign_embedding(draft, target):
    view = view_of(draft, has_embed_tokens=True, embed_trained=True)
    rows = target.get_input_embeddings().weight
    view.embed_tokens = torch.nn.Embedding.from_pretrained(rows[torch.randperm(len(rows))].clone())
    return view


def lost_head(draft, target):
    """A random head, where the target's rows are near the trained ones or the draft was trained with them."""
    view = view_of(draft, has_lm_head=True)
    view.lm_head = torch.nn.Linear(draft.config.hidden_size, draft.config.draft_vocab_size, bias=False)
    return view


def overflowing(draft):
    """float16 with hidden states of a size that only other formats hold; in float32 the same function."""
    out = copy.deepcopy(draft)
    with torch.no_grad():
        for weight in (out.fc.weight, out.midlayer.self_attn.o_proj.weight, out.midlayer.mlp.down_proj.weight):
            weight.mul_(SCALE)
    return out.half()


def ids_for_offsets(draft):
    """Saved, with target ids in `d2t`, and loaded; loading names the fault."""
    with tempfile.TemporaryDirectory() as folder:
        draft.save_pretrained(folder)
        file = Path(folder, "model.safetensors")
        tensors = load_file(file)
        tensors["d2t"] += torch.arange(len(tensors["d2t"]))
        tensors.pop("t2d")
        save_file(tensors, file)
        try:
            return Eagle3DraftModel.from_pretrained(folder, dtype=torch.float32).eval()
        except ValueError as error:
            return str(error)


FAULTS = {
    "theta 1e6": ("rope theta", lambda draft, target: view_of(draft, rope_theta=1e6)),
    "theta 100": ("rope theta", lambda draft, target: view_of(draft, rope_theta=100.0)),
    "linear scaling": (
        "rope scaling",
        lambda draft, target: view_of(
            draft, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        ),
    ),
    "taps + 1": ("taps", lambda draft, target: shifted_taps(draft, 1)),
    "taps - 1": ("taps", lambda draft, target: shifted_taps(draft, -1)),
    "norm_before_residual": (
        "norm flag",
        lambda draft, target: view_of(draft, norm_before_residual=not draft.config.norm_before_residual),
    ),
    "norm_output": ("norm flag", lambda draft, target: view_of(draft, norm_output=not draft.config.norm_output)),
    "embedding": ("embedding", foreign_embedding),
    "head": ("head", lost_head),
    "vocabulary": ("vocabulary", lambda draft, target: ids_for_offsets(draft)),
    "float16": ("precision", lambda draft, target: overflowing(draft)),
}


def seeded(draft, fault: str, target):
    """The draft with a fault; the message, if loading names it; `None` where it cannot be had."""
    torch.manual_seed(0)
    return FAULTS[fault][1](draft, target)


def mistake(faulty, fault: str, target, evidence: Evidence) -> str | None:
    """How the doctor is wrong about a draft with this fault; `None`: it named the right repair."""
    if isinstance(faulty, str):
        return None if "contains target ids instead of offsets" in faulty else f"loading said: {faulty}"
    result = diagnose(faulty, target.config, evidence)
    kinds = [repair.kind for repair, _ in result.repairs]
    if result.is_sound or kinds[:1] != [FAULTS[fault][0]]:
        rates = [round(rate, 2) for rate in result.before.rates]
        return f"{kinds}, acceptance {rates}, {[repair.what for repair, _ in result.repairs]}"
    return None
