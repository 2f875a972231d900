"""A draft's way to the Hub and back: push, card, download, generate, by huggingface_hub against a local server.

push -> user/draft: config.json generation_config.json model.safetensors README.md custom_generate/ -> load by id
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError
from local_hub import TOKEN, hub  # noqa: F401
from models import left_padded, tiny_draft, tiny_target
from safetensors.torch import load_file

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, TreeConfig, checkpoint, record
from hf_eagle3.cli import main
from hf_eagle3.hub import custom_generate
from hf_eagle3.model_loading import load_any_draft


PROMPT = left_padded([9])
FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "README.md"),
    *("custom_generate/generate.py", "custom_generate/requirements.txt"),
}


def is_installed() -> bool:
    try:
        return bool(version("hf-eagle3"))
    except PackageNotFoundError:
        return False


asks_for_the_package = pytest.mark.skipif(not is_installed(), reason="hf-eagle3 is on the path and not installed")


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def written(target, draft, **options):
    with record() as stats:
        out = target.generate(**PROMPT, max_new_tokens=40, do_sample=False, **options or {"assistant_model": draft})
    return out, stats.acceptance_length


def same_weights(one, other) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_pushed_and_loaded_by_id(hub, pair):  # noqa: F811
    target, draft = pair
    commit = draft.push_to_hub("user/draft", target=target, target_name="org/target", private=True)
    assert commit.repo_url.repo_id == "user/draft"
    stored = hub.repositories["user/draft"]
    assert stored.private
    assert set(stored.branches["main"]) == FILES
    loaded = Eagle3DraftModel.from_pretrained("user/draft")
    assert same_weights(loaded, draft)
    assert loaded.tree_config == draft.tree_config
    assert loaded.config.target_name_or_path == "org/target"
    (out, tau), (again, tau_again) = written(target, draft), written(target, loaded)
    assert tau == tau_again > 1.2
    assert torch.equal(out, again)


def test_a_name_without_a_namespace_is_yours(hub, pair):  # noqa: F811
    pair[1].push_to_hub("mine", target=pair[0])
    assert list(hub.repositories) == ["user/mine"]
    assert not hub.repositories["user/mine"].private


def test_branches_and_pinned_revisions(hub, pair):  # noqa: F811
    target, draft = pair
    first = draft.push_to_hub("user/draft", target=target).oid
    draft.with_tree("chain", tree_depth=2).push_to_hub("user/draft", target=target, revision="chains")
    assert Eagle3DraftModel.from_pretrained("user/draft", revision="chains").tree_config.tree_depth == 2
    for revision in ("main", first):
        assert Eagle3DraftModel.from_pretrained("user/draft", revision=revision).tree_config == draft.tree_config
    with pytest.raises(OSError, match="nowhere"):
        Eagle3DraftModel.from_pretrained("user/draft", revision="nowhere")


def test_nothing_is_uploaded_where_something_does_not_fit(hub, pair):  # noqa: F811
    other = tiny_target(hidden_size=16, head_dim=4)
    with pytest.raises(ValueError, match="this draft belongs to another target"):
        pair[1].push_to_hub("user/draft", target=other)
    assert not hub.repositories


def test_tokens_are_huggingface_hubs(hub, pair, monkeypatch):  # noqa: F811
    target, draft = pair
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    with pytest.raises(HfHubHTTPError, match="401"):
        draft.push_to_hub("user/draft", target=target)
    draft.push_to_hub("user/draft", target=target, private=True, token=TOKEN)
    assert TOKEN not in "".join(str(data) for data in hub.repositories["user/draft"].branches["main"].values())
    with pytest.raises(OSError, match="user/draft"):
        Eagle3DraftModel.from_pretrained("user/draft")
    assert same_weights(Eagle3DraftModel.from_pretrained("user/draft", token=TOKEN), draft)


def test_cache_dir_offline_and_local_files_only(hub, pair, tmp_path, monkeypatch):  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)
    with pytest.raises(OSError, match=r"config\.json"):
        Eagle3DraftModel.from_pretrained("user/draft", local_files_only=True, cache_dir=tmp_path / "here")
    Eagle3DraftModel.from_pretrained("user/draft", cache_dir=tmp_path / "here")
    before = len(hub.log)
    assert same_weights(
        Eagle3DraftModel.from_pretrained("user/draft", local_files_only=True, cache_dir=tmp_path / "here"), draft
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_weights(Eagle3DraftModel.from_pretrained("user/draft", cache_dir=tmp_path / "here"), draft)
    assert len(hub.log) == before


def test_a_subfolder_of_a_repository(hub, pair, tmp_path):  # noqa: F811
    pair[1].save_pretrained(tmp_path / "all" / "drafts" / "small")
    hub.put("org/target", tmp_path / "all")
    loaded = Eagle3DraftModel.from_pretrained("org/target", subfolder="drafts/small")
    assert same_weights(loaded, pair[1])
    assert loaded.tree_config == pair[1].tree_config


def test_a_broken_download_goes_on(hub, pair):  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)
    hub.cut_once.add("model.safetensors")
    assert same_weights(Eagle3DraftModel.from_pretrained("user/draft"), draft)
    assert not hub.cut_once


def test_bytes_that_changed_on_the_way_are_seen(hub, pair):  # noqa: F811
    """Of the same length, so that huggingface_hub, which compares sizes, lets them through."""
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)
    hub.corrupted.add("model.safetensors")
    with pytest.raises(ValueError, match="checksum"):
        Eagle3DraftModel.from_pretrained("user/draft")
    hub.corrupted.clear()
    assert same_weights(Eagle3DraftModel.from_pretrained("user/draft", force_download=True), draft)


@asks_for_the_package
def test_custom_generate_from_the_hub(hub, pair):  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)
    plain = target.generate(**PROMPT, max_new_tokens=40, do_sample=False)
    out, tau = written(target, draft, custom_generate="user/draft", trust_remote_code=True)
    assert torch.equal(out, plain)
    assert tau == written(target, draft)[1]
    mine, _ = written(target, draft, custom_generate="user/draft", trust_remote_code=True, assistant_model=draft)
    assert torch.equal(mine, plain)


def test_custom_generate_says_what_to_install(hub, pair, monkeypatch):  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)

    class NotInstalled:
        @staticmethod
        def find_spec(name, *_):
            if name == "hf_eagle3":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [NotInstalled, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "hf_eagle3")
    with pytest.raises(ImportError, match="pip install hf_eagle3"):
        written(target, draft, custom_generate="user/draft", trust_remote_code=True)


def test_custom_generate_asks_for_a_version(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(custom_generate, "__version__", "99.0")
    custom_generate.write_custom_generate(tmp_path, "user/draft")
    with pytest.raises(ImportError, match=re.escape("hf-eagle3>=99.0")):
        written(*pair, custom_generate=str(tmp_path), trust_remote_code=True)


@asks_for_the_package
def test_custom_generate_of_a_directory(pair, tmp_path, monkeypatch):
    target, draft = pair
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    draft.save_pretrained(tmp_path / "draft")
    custom_generate.write_custom_generate(tmp_path / "draft", "user/draft")
    options = {"custom_generate": str(tmp_path / "draft"), "trust_remote_code": True, "draft": str(tmp_path / "draft")}
    with record() as stats:
        out = target.generate(**PROMPT, max_new_tokens=40, do_sample=False, **options)
    assert torch.equal(out, target.generate(**PROMPT, max_new_tokens=40, do_sample=False))
    assert stats.acceptance_length == written(target, draft)[1]


@pytest.mark.parametrize("name", ["user/draft'); import os; ('", "a/b/c", "../draft", ""])
def test_a_name_cannot_become_code(tmp_path, name):
    with pytest.raises(ValueError, match=r"[Rr]epo id"):
        custom_generate.write_custom_generate(tmp_path, name)
    assert not (tmp_path / custom_generate.SUBFOLDER / "generate.py").exists()


def test_no_code_of_a_repository_is_run(hub, pair, tmp_path):  # noqa: F811
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    draft = tmp_path / "draft"
    pair[1].save_pretrained(draft)
    raw = json.loads((draft / "config.json").read_text())
    raw["auto_map"] = {"AutoConfig": "trap.Config", "AutoModel": "trap.Model", "AutoModelForCausalLM": "trap.Model"}
    (draft / "config.json").write_text(json.dumps(raw))
    (draft / "trap.py").write_text(trap)
    (draft / "custom_generate").mkdir()
    (draft / "custom_generate" / "generate.py").write_text(trap)
    hub.put("evil/draft", draft)
    for source in ("evil/draft", str(draft)):
        assert same_weights(Eagle3DraftModel.from_pretrained(source), pair[1])
        assert Eagle3Config.from_pretrained(source).draft_vocab_size == 6
    assert not (tmp_path / "ran").exists()
    assert not any(path.endswith(".py") for _, path in hub.log)


def test_pushing_again_keeps_what_an_author_wrote(hub, pair):  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target, license="mit")
    files = hub.repositories["user/draft"].branches["main"]
    card = files["README.md"].decode().replace("license: mit", "license: mit\nlanguage: fr\nbase_model: org/older")
    files["README.md"] = ("\n".join([card, "Made with love.", ""])).encode()
    draft.push_to_hub("user/draft", target=target, target_name="org/target", license="apache-2.0")
    card = ModelCard.load("user/draft")
    assert (card.data.license, card.data.language, card.data.base_model) == ("apache-2.0", "fr", "org/target")
    assert card.text.count("# draft") == 1
    assert card.text.rstrip().endswith("Made with love.")


def pushed_with_a_word_of_mine(hub, pair) -> dict[str, bytes]:  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)
    files = hub.repositories["user/draft"].branches["main"]
    files["README.md"] += b"\nMade with love.\n"
    return files


@pytest.mark.parametrize("is_cached", [False, True], ids=["new here", "an older one cached"])
def test_a_hub_that_does_not_answer_is_not_a_hub_without_a_card(hub, pair, is_cached):  # noqa: F811
    files = pushed_with_a_word_of_mine(hub, pair)
    if is_cached:
        ModelCard.load("user/draft")
        files["README.md"] += b"\nAnd care.\n"
    before = dict(files)
    hub.silent.add("README.md")
    with pytest.raises(OSError, match=r"whether `user/draft` already has a README.md.*504"):
        pair[1].push_to_hub("user/draft", target=pair[0])
    assert files == before
    hub.silent.clear()
    pair[1].push_to_hub("user/draft", target=pair[0])
    words = ModelCard.load("user/draft", ignore_metadata_errors=True).text
    assert "Made with love." in words
    assert ("And care." in words) is is_cached


def test_a_new_branch_starts_with_the_card_of_main(hub, pair):  # noqa: F811
    pushed_with_a_word_of_mine(hub, pair)
    pair[1].push_to_hub("user/draft", target=pair[0], revision="other")
    assert b"Made with love." in hub.repositories["user/draft"].branches["other"]["README.md"]


def test_metadata_that_cannot_be_read_is_not_dropped(hub, pair):  # noqa: F811
    files = pushed_with_a_word_of_mine(hub, pair)
    files["README.md"] = files["README.md"].replace(b"---\n", b"---\nmodel-index: [{results: []}]\n", 1)
    before = dict(files)
    with pytest.raises(ValueError, match="metadata of the existing card cannot be parsed"):
        pair[1].push_to_hub("user/draft", target=pair[0])
    assert files == before


def test_a_file_that_the_hub_keeps_silent_about_is_not_missing(hub, pair, tmp_path):  # noqa: F811
    """A 504 for the safetensors must not end in an older `.bin`, one for the tree only in a warning."""
    pair[1].save_pretrained(tmp_path / "draft")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "draft" / "pytorch_model.bin")
    hub.put("user/draft", tmp_path / "draft")
    for name in ("config.json", "model.safetensors"):
        hub.silent = {name}
        with pytest.raises(checkpoint.HubUnreachableError, match=rf"`{name}` of `user/draft` \(.*504"):
            Eagle3DraftModel.from_pretrained("user/draft", cache_dir=tmp_path / name)
    hub.silent = {"adapter_config.json"}
    with pytest.raises(checkpoint.HubUnreachableError):
        load_any_draft("user/draft", cache_dir=tmp_path / "other")


def test_a_tree_that_the_hub_keeps_silent_about_is_said(hub, pair, caplog):  # noqa: F811
    target, draft = pair
    draft.push_to_hub("user/draft", target=target)
    hub.silent = {"generation_config.json"}
    loaded = Eagle3DraftModel.from_pretrained("user/draft")
    assert loaded.tree_config == TreeConfig() != draft.tree_config
    assert "The default tree of `user/draft` is unknown" in caplog.text


def test_a_cached_draft_needs_no_hub(hub, pair, tmp_path, caplog):  # noqa: F811
    """No answer to anything, and nobody said "offline": what was loaded once loads again, absent files and all."""
    pair[1].save_pretrained(tmp_path / "draft")
    (tmp_path / "draft" / "generation_config.json").unlink()
    hub.put("user/draft", tmp_path / "draft")
    load_any_draft("user/draft")
    hub.silent = {"config.json", "model.safetensors", "generation_config.json", "adapter_config.json"}
    assert same_weights(load_any_draft("user/draft"), pair[1])
    assert "default tree" not in caplog.text, "that there is none is in the cache"


def test_inspect_does_not_guess_where_the_hub_does_not_answer(hub, pair, capsys):  # noqa: F811
    """Without the heads of the weight files it would report what the configuration says: a head, one layer."""
    target, _ = pair
    tiny_draft(target, has_lm_head=False, num_hidden_layers=2).push_to_hub("user/draft", target=target)
    hub.silent = {"model.safetensors"}
    assert main(["inspect", "--draft", "user/draft"]) == 2
    assert "504" in capsys.readouterr().err


def test_inspect_reads_the_cache_offline(hub, pair, capsys, monkeypatch):  # noqa: F811
    target, _ = pair
    tiny_draft(target, has_lm_head=False, num_hidden_layers=2).push_to_hub("user/draft", target=target)
    Eagle3DraftModel.from_pretrained("user/draft")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["inspect", "--draft", "user/draft", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)["draft"]
    assert (out["own_head"], out["decoder_layers"]) == (False, 2)


def test_a_target_that_cannot_be_read_is_said(hub, pair, tmp_path, caplog):  # noqa: F811
    target, _ = pair
    target.save_pretrained(tmp_path / "target")
    hub.put("org/target", tmp_path / "target")
    draft = tiny_draft(target, target_name_or_path="org/target")
    hub.silent = {"config.json"}
    draft.push_to_hub("user/draft")
    assert "configuration of `org/target`" in caplog.text
    assert "are not checked" in caplog.text


def test_a_process_of_its_own_by_the_endpoint(hub, pair, tmp_path):  # noqa: F811
    """No patched constants: HF_ENDPOINT alone, as a user sets it."""
    target, draft = pair
    draft.save_pretrained(tmp_path / "draft")
    target.save_pretrained(tmp_path / "target")
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment["HF_HUB_DISABLE_XET"] = "1"
    push = ["push", str(tmp_path / "draft"), "user/draft", "--target", str(tmp_path / "target"), "--private"]
    convert = ["convert", "user/draft", str(tmp_path / "back")]
    script = f"from hf_eagle3.cli import main; import sys; sys.exit(main({push}) or main({convert}))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.repositories["user/draft"].private
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("draft", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
