"""The installed transformers version: too old, proved or newer. Imports nothing else of transformers."""

from packaging.version import InvalidVersion, Version
from transformers import __version__ as transformers_version


OLDEST = "5.8"
# The newest release on which the whole test suite passed; newer ones are tested at the first call (`guard.py`).
NEWEST_PROVED = "5.24.0"


def refuse_older() -> None:
    """
    Raises:
        ImportError: transformers is older than the oldest supported version.
    """
    if not is_at_least(OLDEST):
        raise ImportError(
            f"hf_eagle3 needs transformers>={OLDEST}, found {transformers_version}: `pip install -U "
            f"'transformers>={OLDEST}'`."
        )


def is_proved(version: str = transformers_version) -> bool:
    """Whether the release is not newer than the newest tested one. Development versions and forks never are."""
    found = parsed(version)
    return found is not None and not found.is_prerelease and found.local is None and found <= Version(NEWEST_PROVED)


def is_at_least(version: str) -> bool:
    """Whether transformers is at least `version`. An unparsable version counts as new."""
    found = parsed(transformers_version)
    return found is None or found.release >= Version(version).release


def parsed(version: str) -> Version | None:
    """The parsed version; `None` for a fork with a version of another form."""
    try:
        return Version(version)
    except InvalidVersion:
        return None
