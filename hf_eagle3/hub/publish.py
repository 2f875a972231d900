"""A draft's whole repository: weights, configurations, card, `custom_generate/`; and pushing it.

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
from ..data.features import fingerprint
from ..modeling_eagle3 import Eagle3DraftModel
from . import engines
from .card import LIBRARY, CardFacts, write_card
from .custom_generate import write_custom_generate
from .export import SHARD_SIZE, UNKNOWN_TARGET, ExportTarget, export, with_target_facts
from .measured import read_benchmark


logger = logging.get_logger(__name__)

CARD = "README.md"
MESSAGE = "Upload EAGLE-3 draft"


@dataclass(frozen=True)
class Publication:
    """
    What goes into a repository beside the draft itself.

    Args:
        target: The target as a Hub id, a directory, a loaded model or its configuration. Default: the one that the
            draft's configuration names.
        target_name, target_revision: Hub id and commit for the card, where `target` does not tell.
        benchmark: File of `hf-eagle3 benchmark`; without one the card says "not measured".
        datasets, license, tags: Metadata; nothing is assumed.
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
        """Computes the fingerprint of the target's weights, where they are at hand."""
        if isinstance(self.target, PreTrainedModel):
            return partial(fingerprint, self.target)
        return None if target.source is None else lambda: fingerprint(target.weights())

    def export_target(self, draft: Eagle3DraftModel) -> ExportTarget:
        """The target as far as it is known."""
        name, revision = self.target_name, self.target_revision
        if isinstance(self.target, (str, Path)):
            return ExportTarget.load(str(self.target), name, revision)
        if self.target is None:
            name = name or draft.config.target_name_or_path
            revision = revision or draft.config.target_revision
            try:
                return ExportTarget.load(name, name, revision) if name else UNKNOWN_TARGET
            except (OSError, ValueError) as error:  # gated, offline, or with code of its own
                logger.warning(
                    f"The configuration of `{name}`, the target that the draft names, could not be read "
                    f"({' '.join(str(error).split())}). The card names it all the same; whether the draft fits it, "
                    "which layers it taps and how long a text it serves are not checked. Give --target a directory."
                )
                return ExportTarget(engines.TargetFacts(name, revision))
        config = self.target.config if isinstance(self.target, PreTrainedModel) else self.target
        known_name, known_revision = hub_identity(config)
        facts = engines.TargetFacts.of(config, name or known_name, revision or known_revision)
        return ExportTarget(facts, config)


def write_repository(
    draft: Eagle3DraftModel,
    folder: str | Path,
    repo_id: str,
    publication: Publication | None = None,
    earlier_card: str | None = None,
    max_shard_size: int | str = SHARD_SIZE,
) -> list[engines.Finding]:
    """
    Write what `repo_id` is to hold into `folder`; nothing is uploaded.

    Returns:
        What engines would not serve; the card says it too.

    Raises:
        ValueError: draft and target do not fit, or the benchmark is of another pair. Nothing is written then.
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
    )
    card = write_card(view.config, facts, earlier_card)
    case = engines.Case(view.config, publication.dialect, target.facts)
    found = engines.findings(case)
    # Published for the engines that can serve it; the card tells which cannot, and why.
    allowed = {f.rule.name for f in found}
    export(draft, folder, publication.dialect, target, allow=allowed, max_shard_size=max_shard_size)
    (Path(folder) / CARD).write_text(card, encoding="utf-8")
    write_custom_generate(folder, repo_id)
    return found


def push_to_hub(
    self: Eagle3DraftModel,
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
    Upload this draft as a whole repository: weights, a configuration that SGLang, vLLM and the original code read,
    the default tree, a model card, and `custom_generate/`.

    Args:
        repo_id: Hub id; without a namespace it is yours.
        commit_message, commit_description: Of the commit.
        private: Whether a new repository is private; `None`: the Hub's default for you.
        token: As in huggingface_hub, which alone keeps tokens.
        revision: Branch to push to, created if need be.
        create_pr: Open a pull request instead of committing.
        max_shard_size: Largest weight file.
        tags, target, target_name, target_revision, benchmark, datasets, license, dialect: See [`Publication`].

    Returns:
        The commit; its `repo_url` is where the draft lies.

    Raises:
        ValueError: what cannot be published as asked; nothing is uploaded then.

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
            commit_message=commit_message or MESSAGE,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def _earlier_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """
    The card that an author may have written by hand; of a branch that is still to be made, what it will start with.

    Raises:
        OSError: the Hub does not tell whether there is one.
    """
    with tempfile.TemporaryDirectory() as empty:  # a card in the usual cache may be older than the Hub's
        try:
            path = api.hf_hub_download(repo_id, CARD, revision=revision, cache_dir=empty)
        except (LocalEntryNotFoundError, GatedRepoError) as error:  # kinds of the two below that do not mean "none"
            raise OSError(
                f"The Hub does not tell whether `{repo_id}` has a {CARD} already, which a push would replace "
                f"({' '.join(str(error.__cause__ or error).split())}); try again later."
            ) from error
        except RevisionNotFoundError:
            return _earlier_card(api, repo_id, None)
        except (EntryNotFoundError, RepositoryNotFoundError):
            return None
        return Path(path).read_text(encoding="utf-8")
