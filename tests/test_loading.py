"""Ways of loading: whatever the target is loaded as, text with a draft equals text without, or the reason is said.

    bf16, fp16   8 and 4 bits   packed integers   offloaded   compiled   sharded   adapters, one or one per row

The reference is always plain generate on the very same model. Optional packages are tested where they are installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import VOCAB, left_padded, tiny_draft, tiny_target
from node_criterion import worst_node_error
from test_generate import SAMPLING, assert_same
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import hf_eagle3
from hf_eagle3.target import parts as target_parts


PROMPTS = ([11], [13, 4, 9])


def assert_text(target, draft, lengths=PROMPTS, mode: str = "tree") -> None:
    accepted = 0
    for case in lengths:
        for options in ({"do_sample": False}, SAMPLING):
            stats = assert_same(target, draft, left_padded(case), max_new_tokens=20, **options)
            accepted += sum(map(sum, stats.accepted_tokens))
    assert stats.mode == mode
    assert accepted > 0, "nothing was accepted: the test shows little"


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_half_precision(name, dtype):
    """A pass over many tokens rounds differently from one over one, so that near-ties may flip: logits stay near."""
    target = tiny_target(name).to(dtype)
    assert worst_node_error(target, left_padded([21, 9, 15]), num_nodes=12, cycles=2) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_draft_in_another_dtype(dtype):
    target = tiny_target()
    for fields in ({}, {"has_lm_head": False}):
        assert_text(target, tiny_draft(target, **fields).to(dtype))


# -- quantised --------------------------------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """A linear layer as GPTQ and AWQ have it: integers and scales, and nothing called `weight`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scales = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 7
        self.register_buffer("qweight", (linear.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, states):
        return F.linear(states, self.qweight.to(states.dtype) * self.scales, self.bias)


def packed(target: nn.Module) -> nn.Module:
    for parent in list(target.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    return target


def test_layers_without_a_weight():
    target = packed(tiny_target())
    head = target.get_output_embeddings()
    head.bias = nn.Parameter(torch.randn(VOCAB))
    with pytest.raises(AttributeError):
        head.weight  # noqa: B018
    for fields in ({}, {"has_lm_head": False}):
        assert_text(target, tiny_draft(target, **fields))
    ids = torch.tensor([3, 1, 20])
    rows = target_parts.head_rows(target, 32, ids)
    torch.testing.assert_close(rows, (head.qweight * head.scales)[ids])


def test_rows_of_an_adapted_head_are_adapted():
    """A LoRA layer's `weight` is its base layer's: a draft without a head of its own would propose the base's."""
    target = tiny_target()
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(target, peft.LoraConfig(target_modules=["lm_head"], r=4, init_lora_weights=False))
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    rows = target_parts.head_rows(target, 32, torch.arange(5))
    torch.testing.assert_close(hidden @ rows.T, target.get_output_embeddings()(hidden)[:, :5])
    assert_text(adapted, tiny_draft(target, has_lm_head=False))


def saved_target(folder) -> str:
    """Wide enough for blocks of 64."""
    tiny_target(hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(folder)
    return str(folder)


def quantised(folder, **options):
    target = AutoModelForCausalLM.from_pretrained(saved_target(folder), **options).eval()
    target.generation_config = tiny_target().generation_config
    return target


def assert_quantised(target, kind: str) -> None:
    layer = target.model.layers[0].mlp.up_proj
    assert kind in f"{type(layer).__name__} {type(layer.weight.data).__name__}"
    for fields in ({}, {"has_lm_head": False}):
        assert_text(target, tiny_draft(target, **fields))
    size = target.config.hidden_size
    hidden = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    rows = target_parts.head_rows(target, size, torch.arange(5))
    torch.testing.assert_close(hidden @ rows.T, target.lm_head(hidden)[:, :5], rtol=0.02, atol=0.5)


@pytest.mark.parametrize("skipped", [["lm_head"], []], ids=["layers", "layers and head"])
def test_bitsandbytes_8_bit(tmp_path, skipped):
    pytest.importorskip("bitsandbytes")
    options = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped, llm_int8_threshold=0.0)
    target = quantised(tmp_path, quantization_config=options)
    assert_quantised(target, "Linear8bitLt")
    assert worst_node_error(target, left_padded([13, 4, 9]), num_nodes=12, cycles=2) < 1e-4


def test_bitsandbytes_8_bit_with_outliers_is_said(tmp_path, caplog):
    """Which features are outliers depends on all tokens of a pass."""
    pytest.importorskip("bitsandbytes")
    target = quantised(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    target.generate(**left_padded([9]), max_new_tokens=5, assistant_model=tiny_draft(target))
    assert "`llm_int8_threshold=0.0`" in caplog.text


def test_bitsandbytes_4_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    assert_quantised(quantised(tmp_path, quantization_config=options), "Linear4bit")


@pytest.mark.parametrize("with_embeddings", [False, True], ids=["layers", "layers, embedding and head"])
def test_torchao_int8(tmp_path, with_embeddings):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    options = TorchAoConfig(torchao.Int8WeightOnlyConfig(), include_input_output_embeddings=with_embeddings)
    assert_quantised(quantised(tmp_path, quantization_config=options), "Int8Tensor")


def test_torchao_int4(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    options = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    assert_quantised(quantised(tmp_path, quantization_config=TorchAoConfig(options)), "Intx")


def test_an_embedding_in_integers_is_refused():
    target = tiny_target()
    draft = tiny_draft(target)
    embedding = target.get_input_embeddings()
    embedding.weight = nn.Parameter(torch.zeros(VOCAB, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"embedding is quantised \(Embedding, torch.int8\)"):
        target_parts.embedding_weight(target)
    assert draft.config.vocab_size == VOCAB


# -- offloaded, compiled, sharded -------------------------------------------------------------------------------------

PLACES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.layers.3": "cpu",
    "model.norm": "cpu",
    "lm_head": "disk",
}


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload", "dispatch_model", "device_map"])
def test_offloaded(tmp_path, way):
    accelerate = pytest.importorskip("accelerate")
    whole = tiny_target()
    drafts = [tiny_draft(whole), tiny_draft(whole, has_lm_head=False)]
    cpu = torch.device("cpu")
    if way == "cpu_offload":
        target = accelerate.cpu_offload(whole, execution_device=cpu)
    elif way == "disk_offload":
        target = accelerate.disk_offload(whole, tmp_path, execution_device=cpu)
    elif way == "dispatch_model":
        target = accelerate.dispatch_model(whole, PLACES, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    else:
        whole.save_pretrained(tmp_path / "whole")
        options = {"device_map": PLACES, "offload_folder": tmp_path / "folder"}
        target = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", **options)
        target.generation_config = whole.generation_config
    assert any(parameter.is_meta for parameter in target.parameters())
    for draft in drafts:
        assert_text(target, draft)


def compiled(target, part: str):
    options = {"backend": "eager", "dynamic": True}
    if part == "model.compile()":
        target.compile(**options)
    elif part == "torch.compile(model)":
        return torch.compile(target, **options)
    elif part == "forward":
        target.forward = torch.compile(target.forward, **options)
    elif part == "decoder":
        target.model = torch.compile(target.model, **options)
    elif part == "decoder.compile()":
        target.model.compile(**options)
    else:
        for layer in target.model.layers:
            layer.compile(**options)
    return target


PARTS = ("model.compile()", "torch.compile(model)", "forward", "decoder", "decoder.compile()", "layers")


def test_what_is_compiled_in_part_is_seen():
    target = tiny_target()
    assert not target_parts.is_compiled(target)
    for part in set(PARTS) - {"torch.compile(model)"}:  # its `generate` is that of the model inside, not compiled
        assert target_parts.is_compiled(compiled(tiny_target(), part)), part


@pytest.mark.parametrize("part", [PARTS[0], *(pytest.param(part, marks=pytest.mark.nightly) for part in PARTS[1:])])
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_compiled(part):
    torch._dynamo.reset()
    target = tiny_target()
    draft = tiny_draft(target).with_tree("static", num_draft_tokens=8, tree_depth=2, tree_top_k=4)
    target = compiled(target, part)
    target.generate(**left_padded([5]), max_new_tokens=2, do_sample=False)  # compiled before any hook is there
    stats = assert_same(target, draft, left_padded([11]), max_new_tokens=4, **SAMPLING)
    assert sum(map(sum, stats.accepted_tokens)) > 0


def test_tensor_parallel(tmp_path):
    """Two processes, each with a share of heads and vocabulary, draft and choose the same."""
    tiny_target().save_pretrained(tmp_path)
    script = Path(__file__).parent / "tensor_parallel_run.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line.removeprefix("FOUND")) for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert len(found) == 2
    for process in found:
        assert process["is_sharded"]
        assert all(process["same"])
        assert process["accepted"] > 0
        assert not process["choices"], "processes that measure for themselves may choose different trees"


# -- adapted ----------------------------------------------------------------------------------------------------------

PEFTS_OWN_WARNING = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def adapted():
    """(a target with adapters "first" and "second", a draft)."""
    peft = pytest.importorskip("peft")
    target = tiny_target()
    draft = tiny_draft(target)
    torch.manual_seed(0)
    options = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    wrapped = peft.get_peft_model(target, peft.LoraConfig(**options), adapter_name="first")
    wrapped.add_adapter("second", peft.LoraConfig(**options))
    return wrapped.eval(), draft


def text(target, **options) -> list:
    return target.generate(**left_padded([9]), max_new_tokens=12, do_sample=False, **options).tolist()


@PEFTS_OWN_WARNING
def test_an_adapter_of_transformers_own_integration(monkeypatch):
    """`add_adapter`, `load_adapter`; transformers may ask for a newer PEFT than the index has."""
    peft = pytest.importorskip("peft")
    target = tiny_target()
    draft, before = tiny_draft(target), text(target)
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    try:
        target.add_adapter(config)
    except (ImportError, ValueError):
        monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", peft.__version__)
        target.add_adapter(config)
    assert text(target) != before
    assert text(target, assistant_model=draft) == text(target)
    target.disable_adapters()
    assert text(target, assistant_model=draft) == before


@PEFTS_OWN_WARNING
def test_adapters_switched_between_calls(adapted):
    target, draft = adapted
    texts = []
    for name in ("first", "second", "first"):
        target.set_adapter(name)
        assert_text(target, draft)
        texts.append(text(target, assistant_model=draft))
    assert texts[0] == texts[2] != texts[1], "the adapters did nothing"
    with target.disable_adapter():
        assert_text(target, draft)
        assert text(target, assistant_model=draft) not in texts
    assert_text(target.merge_and_unload(adapter_names=["second"]), draft)


@PEFTS_OWN_WARNING
def test_an_adapter_for_each_row(adapted):
    """Rows that end early stay in the batch, which PEFT counts."""
    target, draft = adapted
    names = {"adapter_names": ["first", "second", "__base__"], "eos_token_id": [5, 6, 7]}
    stats = assert_same(target, draft, left_padded([13, 4, 9]), **names, max_new_tokens=30, **SAMPLING)
    assert len(set(stats.generated_lengths)) > 1, "all rows ended together: the test shows nothing"


@PEFTS_OWN_WARNING
def test_adapters_of_target_and_draft_at_once(adapted):
    peft = pytest.importorskip("peft")
    target, draft = adapted
    config = peft.LoraConfig(target_modules=["q_proj", "fc", "lm_head"], init_lora_weights=False)
    with hf_eagle3.record() as plain:
        text(target, assistant_model=draft)
    wrapped = peft.get_peft_model(draft, config)
    assert_text(target, wrapped)
    with hf_eagle3.record() as stats:
        text(target, assistant_model=wrapped)
    assert stats.accepted_tokens != plain.accepted_tokens, "the draft's adapter did nothing"
