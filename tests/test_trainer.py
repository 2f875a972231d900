"""`Eagle3Trainer`: the same loss curve however the work is cut up; what it warns of and refuses; what it saves."""

import copy

import pytest
import torch
from models import VOCAB, tiny_target
from torch.testing import assert_close
from training_setup import curve, fresh_draft, losses, trainer, written

import hf_eagle3
from hf_eagle3.data.collator import Eagle3DataCollator
from hf_eagle3.training import RECIPES, Eagle3TrainingArguments, new_draft
from hf_eagle3.training_options import LOSSES


@pytest.fixture(scope="module")
def plain_curve(tmp_path_factory):
    return curve(tmp_path_factory.mktemp("plain"))


def close(found, expected, tolerance=2e-4):
    assert len(found) == len(expected)
    assert found == pytest.approx(expected, rel=tolerance)


def test_the_loss_falls(tmp_path):
    found = curve(tmp_path, max_steps=40)
    assert sum(found[-5:]) < 0.97 * sum(found[:5])


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        {"activation_checkpointing": True},
        {"packing": True, "max_length": 50},
        {"head_chunk_size": 5},
        {"head_chunk_size": 0},
        {"dataloader_num_workers": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_same_curve_however_the_work_is_cut(tmp_path, plain_curve, options):
    """Accumulated batches have different numbers of tokens: means of means would differ."""
    if "activation_checkpointing" in options:
        options = {checkpointing_name(): True}
    close(curve(tmp_path, **options), plain_curve)


def checkpointing_name() -> str:
    names = Eagle3TrainingArguments.__dataclass_fields__
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def test_bf16_stays_near(tmp_path, plain_curve):
    close(curve(tmp_path, bf16=True), plain_curve, tolerance=0.01)


def test_a_compiled_draft_stays_near(tmp_path, plain_curve):
    found = curve(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", max_steps=2)
    close(found, plain_curve[:1] + found[1:], tolerance=1e-3)


def test_resuming_gives_the_same_curve(tmp_path, plain_curve):
    first = trainer(tmp_path, save_strategy="steps", save_steps=3)
    first.train()
    close(losses(first), plain_curve)
    second = trainer(tmp_path, draft=fresh_draft())
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    close(losses(second), plain_curve, tolerance=1e-5)


def test_one_step_equals_by_hand(tmp_path):
    """The loss of a batch, written out with a dense mask and whole logits."""
    target, draft = tiny_target(), fresh_draft()
    batch = Eagle3DataCollator()(list(written().select(range(5))))
    found = trainer(tmp_path, target, draft).compute_loss(draft, dict(batch))
    ids, mask = batch["input_ids"], batch["loss_mask"]
    with torch.no_grad():
        out = target(ids, attention_mask=(batch["document_ids"] >= 0).long(), output_hidden_states=True)
    features = torch.cat([out.hidden_states[i + 1] for i in draft.config.target_layer_ids], dim=-1)
    rows, length = target.get_input_embeddings().weight.detach()[ids], ids.shape[1]
    kept = draft.target_token_ids
    hidden, keys, values, total = draft.fuse(features), [], [], 0.0
    for step in range(3):
        embeds = torch.zeros_like(rows)
        embeds[:, : length - 1 - step] = rows[:, 1 + step :]

        def attend(query, key, value, layer_index):
            keys.append(key)
            values.append(value)
            groups = query.shape[1] // key.shape[1]
            key, value = (torch.cat(x, dim=2).repeat_interleave(groups, 1) for x in (keys, values))
            seen = [torch.ones(length, length).tril(), *(torch.eye(length) for _ in keys[1:])]
            scores = query @ key.mT * query.shape[-1] ** -0.5
            return scores.masked_fill(torch.cat(seen, 1) == 0, float("-inf")).softmax(-1) @ value

        hidden, normed = draft.decode(
            embeds, hidden, draft.rotary(torch.arange(length)[None] + step, rows.dtype), attend
        )
        log_q = draft.lm_head(normed).log_softmax(-1)
        values_of_step, count = 0.0, 0
        for row in range(len(ids)):
            for i in range(length):
                predicted = i + 2 + step
                if predicted < length and mask[row, predicted]:
                    count += 1
                    logits = out.logits[row, i + 1 + step]
                    if logits.argmax() in kept:
                        values_of_step -= (logits[kept].softmax(-1) * log_q[row, i]).sum()
        total += 0.8**step * values_of_step / count
    assert_close(found, total, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(tmp_path, loss):
    found = curve(tmp_path, loss=loss, max_steps=25)
    assert sum(found[-5:]) < sum(found[:5])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(tmp_path, recipe):
    found = curve(tmp_path, **RECIPES[recipe] | {"learning_rate": 3e-3, "max_steps": 4})
    assert len(found) == 4


def test_feature_regression_alone_trains_the_states(tmp_path):
    plain = curve(tmp_path, max_steps=2)
    both = curve(tmp_path, max_steps=2, feature_loss_weight=0.5)
    assert both[0] > plain[0] + 1e-3


def test_evaluate_takes_conversations_as_the_constructor_does(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    raw = written(6, seed=3).add_column("note", ["x"] * 6)
    assert run.evaluate(raw)["eval_loss"] == pytest.approx(run.predict(raw).metrics["test_loss"])


def test_a_stream_gives_the_same_curve(tmp_path, plain_curve):
    ordered = curve(tmp_path, data=written(), train_sampling_strategy="sequential")
    close(curve(tmp_path, data=written().to_iterable_dataset()), ordered)
    assert ordered != pytest.approx(plain_curve, rel=1e-3)


def test_tokens_seen_are_counted(tmp_path):
    run = trainer(tmp_path, max_steps=1, include_num_input_tokens_seen=True)
    run.train()
    assert run.state.num_input_tokens_seen > 0


def test_a_draft_in_half_precision_is_warned_of(tmp_path, caplog):
    trainer(tmp_path, draft=fresh_draft().to(torch.bfloat16))
    assert "lost to rounding" in caplog.text


def test_a_frozen_head_stays(tmp_path):
    draft = fresh_draft()
    before = draft.lm_head.weight.clone()
    run = trainer(tmp_path, draft=draft, train_lm_head=False)
    run.train()
    assert torch.equal(before, draft.lm_head.weight)


def test_the_target_and_its_embedding_do_not_move(tmp_path):
    target = tiny_target()
    before = copy.deepcopy(target.state_dict())
    trainer(tmp_path, target).train()
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    assert not any(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_target_in_half_precision(tmp_path, plain_curve, dtype):
    close(curve(tmp_path, target=tiny_target().to(dtype)), plain_curve, tolerance=0.05)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "mixtral", "qwen3_next"])
def test_other_targets(tmp_path, name):
    found = curve(tmp_path, target=tiny_target(name), draft=fresh_draft(tiny_target(name)), max_steps=2)
    assert all(x > 0 for x in found)


def test_a_head_with_a_soft_cap_is_applied(tmp_path):
    """The tiny Gemma's logits are far beyond this cap, so leaving it out would be seen (and refused)."""
    target = tiny_target("gemma3")
    target.config.final_logit_softcapping = 2.0
    run = trainer(tmp_path, target, fresh_draft(target), max_steps=1)
    run.train()
    target.config.final_logit_softcapping = None
    refused = trainer(tmp_path, target, fresh_draft(target), max_steps=1)
    inner = target.lm_head.forward
    target.forward_before = target.forward
    target.lm_head.forward = lambda hidden: inner(hidden)
    target.forward = lambda *args, **kwargs: scaled(target.forward_before(*args, **kwargs))
    with pytest.raises(ValueError, match="head of Gemma3"):
        refused.train()


def scaled(output):
    output.logits = output.logits * 1.5
    return output


def test_what_is_saved_loads_in_plain_form(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model(str(tmp_path / "out"))
    loaded = hf_eagle3.Eagle3DraftModel.from_pretrained(tmp_path / "out")
    for name, value in run.model.state_dict().items():
        assert_close(loaded.state_dict()[name], value)


def test_best_model_by_true_acceptance_length(tmp_path):
    run = trainer(
        tmp_path,
        eval_data=written(8, seed=3),
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="acceptance_length",
        num_generation_prompts=4,
        generation_max_new_tokens=12,
    )
    run.train()
    found = [e["eval_acceptance_length"] for e in run.state.log_history if "eval_acceptance_length" in e]
    assert len(found) == 3
    assert run.state.best_metric == max(found) >= 1


def test_true_and_simulated_acceptance_length_agree_on_the_targets_own_greedy_text(tmp_path):
    """The simulation is teacher-forced, so on greedy text it sees what generation sees."""
    target = tiny_target(scale=4.0)
    prompts = torch.randint(3, VOCAB, (24, 4), generator=torch.Generator().manual_seed(9))
    ids = target.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=60, do_sample=False)
    data = type(written()).from_dict({"input_ids": ids.tolist(), "loss_mask": [[0] * 4 + [1] * 60] * 24})
    run = trainer(
        tmp_path,
        target,
        data=data,
        eval_data=data,
        max_steps=30,
        training_time_test_steps=5,
        num_generation_prompts=24,
        generation_max_new_tokens=60,
        generation_tree="chain:5",
    )
    run.train()
    found = run.evaluate()
    assert found["eval_text_agreement"] > 0.85  # the rest is outside the draft vocabulary
    assert found["eval_acceptance_length"] == pytest.approx(found["eval_simulated_acceptance_length"], rel=0.1)


def test_lora_trains_saves_and_merges(tmp_path):
    peft = pytest.importorskip("peft")
    draft = fresh_draft()
    frozen = draft.midlayer.mlp.up_proj.weight.clone()
    run = trainer(
        tmp_path,
        draft=draft,
        trainer_options={"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj", "up_proj", "fc"])},
        max_steps=4,
        eval_data=written(8, seed=3),
        num_generation_prompts=2,
        generation_max_new_tokens=8,
    )
    run.train()
    assert run.evaluate()["eval_acceptance_length"] >= 1
    assert torch.equal(frozen, draft.midlayer.mlp.up_proj.base_layer.weight)
    run.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    again = peft.PeftModel.from_pretrained(fresh_draft(), str(tmp_path / "adapter")).merge_and_unload()
    merged = run.accelerator.unwrap_model(run.model).merge_and_unload()
    features, embeds = torch.randn(1, 5, 96), torch.randn(1, 5, 32)
    assert_close(again(embeds, features).logits, merged(embeds, features).logits)
    merged.save_pretrained(tmp_path / "merged")
    loaded = hf_eagle3.Eagle3DraftModel.from_pretrained(tmp_path / "merged")
    assert_close(loaded(embeds, features).logits, merged(embeds, features).logits)


def test_a_target_with_adapters_teaches_the_adapted_model(tmp_path, plain_curve):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    target = peft.get_peft_model(
        tiny_target(), peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
    )
    adapted = curve(tmp_path, target=target, draft=fresh_draft(), max_steps=2)
    assert adapted[0] != pytest.approx(plain_curve[0], rel=1e-3)
    merged = curve(tmp_path, target=target.merge_and_unload(), draft=fresh_draft(), max_steps=2)
    close(adapted, merged)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    draft = fresh_draft()
    with torch.no_grad():
        draft.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan"):
        trainer(tmp_path, draft=draft).train()


def test_a_small_vocabulary_is_warned_of_with_the_figure(tmp_path, caplog):
    trainer(tmp_path, draft=fresh_draft(size=3), max_steps=2).train()
    assert any("draft vocabulary contains only" in r.message and "%" in r.message for r in caplog.records)


def test_text_that_the_target_would_not_say_is_warned_of(tmp_path, caplog):
    generator = torch.Generator().manual_seed(0)
    strange = torch.randint(3, VOCAB, (16, 20), generator=generator).tolist()
    data = type(written()).from_dict({"input_ids": strange, "loss_mask": [[1] * 20] * 16})
    trainer(tmp_path, data=data, max_steps=1).train()
    assert any("are the target's argmax" in r.message for r in caplog.records)


def test_other_targets_draft_is_refused(tmp_path):
    draft = fresh_draft()
    draft.config.target_hidden_size = 48
    with pytest.raises(ValueError, match="32 wide"):
        trainer(tmp_path, draft=draft)


def test_something_else_than_a_draft_is_refused(tmp_path):
    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        trainer(tmp_path, draft=tiny_target())
    with pytest.raises(TypeError, match="loaded target"):
        trainer(tmp_path, target="some/model", draft=fresh_draft())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_time_test_steps": 0}, "training_time_test_steps"),
        ({"loss": "mse"}, "choose from soft_cross_entropy"),
        ({"step_decay": 0.0}, "step_decay"),
        ({"generation_tree": "bush"}, "chain:DEPTH"),
        ({"generation_tree": "static:500,2,3"}, "drafts only"),
        ({"max_length": 2}, "max_length"),
        ({"learning_rate": -1.0}, "`learning_rate` is -1.0; it must be at least 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"adam_beta2": 1.5}, "`adam_beta2` is 1.5; it must be from 0 to"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1"),
        ({"head_chunk_size": -1}, "head_chunk_size"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Eagle3TrainingArguments(str(tmp_path), **options)


def test_an_unknown_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match="paper, specforge, speculators"):
        Eagle3TrainingArguments.from_recipe("meduse", output_dir=str(tmp_path))


def test_one_tap_and_one_step_train_an_eagle_like_draft(tmp_path):
    draft = fresh_draft(target_layer_ids=[2])
    assert draft.config.num_tapped_layers == 1
    found = curve(tmp_path, draft=draft, training_time_test_steps=1, max_steps=20)
    assert sum(found[-4:]) < sum(found[:4])


def test_a_trained_draft_is_lossless(tmp_path):
    target = tiny_target()
    run = trainer(tmp_path, target, max_steps=3)
    run.train()
    prompt = torch.tensor([[5, 9, 4, 11]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 30}
    plain = target.generate(prompt, **options)
    assert torch.equal(plain, target.generate(prompt, assistant_model=run.model.eval(), **options))


def test_new_draft_needs_counts_for_a_smaller_vocabulary():
    with pytest.raises(ValueError, match="token_counts"):
        new_draft(tiny_target(), 8)


def test_a_draft_over_all_tokens_has_no_mapping(tmp_path):
    draft = fresh_draft(size=None)
    assert draft.target_token_ids is None
    found = curve(tmp_path, draft=draft, max_steps=2)
    assert found[0] > 0


def test_a_draft_with_a_window_trains_within_it(tmp_path):
    """Training-time test attends to every position, which is the same as long as samples are no longer."""
    draft = fresh_draft(sliding_window=64)
    with pytest.raises(ValueError, match="`max_length` is 2048, the draft's `sliding_window` 64"):
        trainer(tmp_path, draft=draft, max_length=2048)
    assert curve(tmp_path, draft=draft, max_length=64, max_steps=1)
