"""Writes and uploads a draft's repository: weights, configurations, card and `custom_generate/`.

Uploading, resuming, checksums and tokens are huggingface_hub's. Does not know the command line.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .._version import __version__
from ..configuration_eagle3 import hub_identity
from ..draft_model import DraftModel
from ..target.fingerprint import fingerprint
from . import engines
from .card import LIBRARY, CardFacts, write_card
from .card_figures import PLOT, draw
from .custom_generate import write_custom_generate
from .export import SHARD_SIZE, UNKNOWN_TARGET, ExportTarget, export, with_target_facts
from .formats import BLOCK, CLASSES, EAGLE3
from .measured import read_benchmark
from .trained import read_training


logger = logging.get_logger(__name__)

CARD = "README.md"
MESSAGES = {EAGLE3: "Upload EAGLE-3 draft", BLOCK: "Upload block drafter"}


@dataclass(frozen=True)
class Publication:
    """
    Contents of a repository besides the draft itself.

    Args:
        target: The target as a Hub id, a directory, a loaded model or its configuration. Default: the one named in the
            draft's configuration.
        target_name, target_revision: Hub id and commit for the card, if `target` does not have them.
        benchmark: File of `hf-eagle3 benchmark`; without one the card says "not measured".
        datasets, license, tags: Hub metadata; no defaults.
        dialect: "plain" or "speculators".
    """

    target: str | PreTrainedModel | PreTrainedConfig | None = None
    target_name: str | None = None
    target_revision: str | None = None
    benchmark: str | Path | None = None
    datasets: Iterable[str] = ()
    license: str | None = None
    tags: Iterable[str] = ()
    dialect: str = engines.PLAIN

    def target_fingerprint(self, target: ExportTarget) -> Callable[[], str] | None:
        """A function that computes the fingerprint of the target's weights, or `None` if they are not available."""
        if isinstance(self.target, PreTrainedModel):
            return partial(fingerprint, self.target)
        return None if target.source is None else lambda: fingerprint(target.weights())

    def export_target(self, draft: DraftModel) -> ExportTarget:
        """What is known about the target."""
        name, revision = self.target_name, self.target_revision
        if isinstance(self.target, (str, Path)):
            return ExportTarget.load(str(self.target), name, revision)
        if self.target is None:
            name = name or draft.config.target_name_or_path
            revision = revision or draft.config.target_revision
            try:
                return ExportTarget.load(name, name, revision) if name else UNKNOWN_TARGET
            except (OSError, ValueError) as error:  # gated, offline, or remote code
                logger.warning(
                    f"The configuration of `{name}`, the target named by the draft, could not be read "
                    f"({' '.join(str(error).split())}). The card still names it, but fit, tapped layers and context "
                    "length are not checked. Pass a directory as --target."
                )
                return ExportTarget(engines.TargetFacts(name, revision))
        config = self.target.config if isinstance(self.target, PreTrainedModel) else self.target
        known_name, known_revision = hub_identity(config)
        facts = engines.TargetFacts.of(config, name or known_name, revision or known_revision)
        return ExportTarget(facts, config)


def write_repository(
    draft: DraftModel,
    folder: str | Path,
    repo_id: str,
    publication: Publication | None = None,
    earlier_card: str | None = None,
    max_shard_size: int | str = SHARD_SIZE,
) -> list[engines.Finding]:
    """
    Write the contents of the repository `repo_id` into `folder`, without uploading.

    Returns:
        What engines would not serve correctly; the card lists it too.

    Raises:
        ValueError: draft and target do not fit, or the benchmark is of another draft or target. Nothing is written.
    """
    validate_repo_id(repo_id)
    publication = publication or Publication()
    target = publication.export_target(draft)
    view = with_target_facts(draft, target)
    measured = None
    if publication.benchmark is not None:
        drafts = (repo_id, draft.config.name_or_path)
        targets = (target.facts.name, draft.config.target_name_or_path, target.source)
        measured = read_benchmark(
            publication.benchmark, drafts, targets, fingerprint(draft), publication.target_fingerprint(target)
        )
    plot = draw(measured)
    facts = CardFacts(
        repository=repo_id,
        target=target.facts,
        tree=draft.tree_config,
        dtype=str(draft.dtype).removeprefix("torch."),
        num_parameters=sum(p.numel() for p in view.parameters()),
        dialect=publication.dialect,
        datasets=tuple(publication.datasets),
        license=publication.license,
        tags=tuple(publication.tags),
        measured=measured,
        plot=None if plot is None else PLOT,
        training=read_training(draft.config.name_or_path),
    )
    card = write_card(view.config, facts, earlier_card)
    case = engines.Case(view.config, publication.dialect, target.facts)
    found = engines.findings(case)
    # Allowed: it is published for the engines that can serve it, and the card says which cannot and why.
    allowed = {f.rule.name for f in found}
    export(draft, folder, publication.dialect, target, allow=allowed, max_shard_size=max_shard_size)
    (Path(folder) / CARD).write_text(card, encoding="utf-8")
    if plot is not None:
        (Path(folder) / PLOT).write_bytes(plot)
    write_custom_generate(folder, repo_id, CLASSES[draft.config.model_type])
    return found


def push_to_hub(
    self: DraftModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = SHARD_SIZE,
    tags: Iterable[str] | None = None,
    target: str | PreTrainedModel | PreTrainedConfig | None = None,
    target_name: str | None = None,
    target_revision: str | None = None,
    benchmark: str | Path | None = None,
    datasets: Iterable[str] = (),
    license: str | None = None,
    dialect: str = engines.PLAIN,
) -> CommitInfo:
    """
    Upload this draft as a complete repository: weights, a configuration that SGLang, vLLM and the original code read,
    the default tree, a model card, and `custom_generate/`.

    Args:
        repo_id: Hub id; your own namespace by default.
        commit_message, commit_description: Of the commit.
        private: Whether a new repository is private; `None`: your default on the Hub.
        token: As in huggingface_hub.
        revision: Branch to push to, created if missing.
        create_pr: Open a pull request instead of committing.
        max_shard_size: Largest weight file.
        tags, target, target_name, target_revision, benchmark, datasets, license, dialect: See [`Publication`].

    Returns:
        The commit; `repo_url` is the repository's address.

    Raises:
        ValueError: the draft cannot be published like this. Nothing is uploaded.

    Example:
        `draft.push_to_hub("user/my-draft", target="Qwen/Qwen3-1.7B", benchmark="figures.json", license="mit")`
    """
    publication = Publication(
        target, target_name, target_revision, benchmark, tuple(datasets), license, tuple(tags or ()), dialect
    )
    api = HfApi(library_name=LIBRARY, library_version=__version__, token=token)
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    with tempfile.TemporaryDirectory() as folder:
        earlier = _earlier_card(api, repo_id, revision)
        write_repository(self, folder, repo_id, publication, earlier, max_shard_size)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or MESSAGES[self.config.model_type],
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def _earlier_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """
    The existing card, or `None`. For a branch that does not exist yet, that of the default branch, which it will copy.

    Raises:
        OSError: it is unknown whether a card exists.
    """
    with tempfile.TemporaryDirectory() as empty:  # the default cache may hold an older card
        try:
            path = api.hf_hub_download(repo_id, CARD, revision=revision, cache_dir=empty)
        except (
            LocalEntryNotFoundError,
            GatedRepoError,
        ) as error:  # subclasses of those below that do not mean "no card"
            raise OSError(
                f"Could not check whether `{repo_id}` already has a {CARD}, which a push would replace "
                f"({' '.join(str(error.__cause__ or error).split())}); try again later."
            ) from error
        except RevisionNotFoundError:
            return _earlier_card(api, repo_id, None)
        except (EntryNotFoundError, RepositoryNotFoundError):
            return None
        return Path(path).read_text(encoding="utf-8")
