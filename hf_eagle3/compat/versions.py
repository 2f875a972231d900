"""Which transformers this is. Imports nothing of it but its version."""

from packaging.version import InvalidVersion, Version
from transformers import __version__ as transformers_version


OLDEST = "5.8"
# The whole test suite passed on it. Newer ones are tried out at the first call (`guard.py`).
NEWEST_PROVED = "5.24.0"


def refuse_older() -> None:
    """
    Raises:
        ImportError: this transformers is older than the oldest supported one.
    """
    if not is_at_least(OLDEST):
        raise ImportError(
            f"hf_eagle3 needs transformers>={OLDEST}, found {transformers_version}: `pip install -U 'transformers>={OLDEST}'`."
        )


def is_proved(version: str = transformers_version) -> bool:
    """Whether the test suite passed on a release as old or younger. Development versions and forks never are."""
    found = parsed(version)
    return found is not None and not found.is_prerelease and found.local is None and found <= Version(NEWEST_PROVED)


def is_at_least(version: str) -> bool:
    """Whether this transformers is `version` or newer. What has no version number counts as new."""
    found = parsed(transformers_version)
    return found is None or found.release >= Version(version).release


def parsed(version: str) -> Version | None:
    """The version, or `None` where a fork calls itself something else."""
    try:
        return Version(version)
    except InvalidVersion:
        return None
