"""Which errors are the caller's mistake, reported in one line, and which are bugs, shown with their traceback.

A mistake is what this package refuses by a `raise` of its own (each names argument, value and remedy), what the
operating system or the Hub reports, and what another library says of a file or id that the caller named (`explained`).
Any other error, a ValueError among them, comes from a line that should not have failed.
"""

import dis
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


PACKAGE = __name__.partition(".")[0]
REFUSALS = (ValueError, FloatingPointError, ImportError)
# Whose refusals are meant for the caller: this package's, and those of repository ids, tokens and names by the Hub's.
REFUSING = (PACKAGE, "huggingface_hub")
HTTP_LIBRARIES = ("httpx", "httpx2", "requests")  # which one is under huggingface_hub depends on its version
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CUT_WRITES = ("PytorchStreamWriter failed writing", ". unexpected pos ")  # what torch.save says
LONGEST_REASON = 400


class UserError(ValueError):
    """A mistake of the caller, in one line."""


@contextmanager
def explained(what: str, remedy: str, by: tuple[str, ...] = ()) -> Iterator[None]:
    """
    What other libraries raise about something that the caller named becomes one line: what, their reason, the remedy.

    Args:
        what: E.g. "`--target` ./model cannot be loaded".
        remedy: A sentence.
        by: Only where a `raise` in a module whose name begins so made the error. Default: whatever made it.

    Raises:
        UserError: instead of another library's error. Our own refusals, bugs in our own code, a full disk and an
            unreachable Hub pass unchanged.
    """
    try:
        yield
    except Exception as error:
        is_ours = module_of(last_frame(error)).startswith(PACKAGE)
        is_bug = is_ours and type(error).__module__ == "builtins" and not isinstance(error, OSError)
        if is_bug or is_raised_by(error, (PACKAGE,)) or disk_is_full(error) or is_from_http(error):
            raise
        if by and not is_raised_by(error, by):
            raise
        raise UserError(f"{what}: {reason(error)} {remedy}") from error


def in_one_line(error: Exception) -> str | None:
    """The message for the caller; `None` for a bug."""
    names = [kind.__name__ for kind in type(error).__mro__]  # no library is imported to find out
    if is_from_http(error):
        return f"the Hub cannot be reached ({error})."
    if disk_is_full(error):
        return f"writing failed, as the disk is full: {reason(error)} Free some space, or name another disk."
    if OUT_OF_MEMORY in names:
        return f"{reason(error)} Take smaller batches, `--dtype bfloat16`, or another `--device`."
    is_refusal = isinstance(error, REFUSALS) and is_raised_by(error, REFUSING)
    return str(error) if is_refusal or isinstance(error, OSError) else None


def is_raised_by(error: Exception, modules: tuple[str, ...]) -> bool:
    """Whether a `raise` made it, rather than a line that failed, in a module whose name begins as one of `modules`."""
    frame = last_frame(error)
    if frame is None or not module_of(frame).startswith(modules):
        return False
    return frame.tb_frame.f_code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def is_from_http(error: Exception) -> bool:
    """Whether the library under huggingface_hub raised it."""
    return any(kind.__module__.partition(".")[0] in HTTP_LIBRARIES for kind in type(error).__mro__)


def last_frame(error: BaseException) -> TracebackType | None:
    """Where it was raised."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame


def module_of(frame: TracebackType | None) -> str:
    """Name of the module whose code a frame runs."""
    return "" if frame is None else frame.tb_frame.f_globals.get("__name__") or ""


def disk_is_full(error: Exception) -> bool:
    """Whether writing failed for want of space; safetensors and torch say so in words only."""
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    text = str(error)
    return any(f"(os error {number})" in text for number in FULL_DISK) or any(words in text for words in CUT_WRITES)


def reason(error: Exception) -> str:
    """Another library's message as a sentence in one line, with the kind of error where that says more."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST_REASON:
        text = text[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."
    if isinstance(error, KeyError):
        text = f"unknown name {text}"
    elif not isinstance(error, (ValueError, OSError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
