"""User errors, reported in one line, versus bugs, reported with a traceback.

User errors are those that this package raises itself (each names argument, value and remedy), those of the operating
system or the Hub, and errors of other libraries about a file or id given by the user (`explained`). Any other
exception, including a ValueError from a failing expression, is a bug. Does not import other libraries.
"""

import dis
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


PACKAGE = __name__.partition(".")[0]
REFUSALS = (ValueError, FloatingPointError, ImportError)
# Packages whose own `raise` statements are meant for the user: ours, and huggingface_hub for ids and tokens.
REFUSING = (PACKAGE, "huggingface_hub")
HTTP_LIBRARIES = ("httpx", "httpx2", "requests")  # huggingface_hub uses one of them, depending on its version
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILED_WRITES = ("PytorchStreamWriter failed writing", ". unexpected pos ")  # messages of torch.save
LONGEST_REASON = 400
# What to do about an error of the operating system, by its number.
OS_REMEDIES = {
    errno.EEXIST: "there is a file of that name; choose another path",
    errno.ENOTDIR: "a part of that path is a file; choose another path",
    errno.EISDIR: "that is a folder; name a file in it",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.EACCES: "permission denied; choose another path",
    errno.EROFS: "that is on a read-only disk; choose another path",
}


class UserError(ValueError):
    """A user error, in one line."""


class CallRefused(ValueError):
    """A call of `generate` that no draft can serve, raised before its first token; plain `generate` can."""


@contextmanager
def explained(what: str, remedy: str, by: tuple[str, ...] = ()) -> Iterator[None]:
    """
    Convert exceptions of other libraries about user input to one line: what failed, the reason, the remedy.

    Args:
        what: E.g. "`--target` ./model cannot be loaded".
        remedy: A sentence.
        by: Convert only errors raised in modules whose name starts with one of these. Default: all.

    Raises:
        UserError: instead of another library's error. User errors and bugs of this package, a full disk and an
            unreachable Hub are passed on unchanged.
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
    """The message for the user; `None` for a bug."""
    names = [kind.__name__ for kind in type(error).__mro__]  # by name, without importing the library
    if is_from_http(error):
        return f"the Hub is unreachable ({error})."
    if disk_is_full(error):
        return f"writing failed because the disk is full: {reason(error)} Free some space or use another disk."
    if OUT_OF_MEMORY in names:
        return f"{reason(error)} Use smaller batches, `--dtype bfloat16` or another `--device`."
    if isinstance(error, OSError) and error.filename is not None and error.errno in OS_REMEDIES:
        return f"{error.filename}: {OS_REMEDIES[error.errno]}."
    is_refusal = isinstance(error, REFUSALS) and is_raised_by(error, REFUSING)
    return str(error) if is_refusal or isinstance(error, OSError) else None


def is_raised_by(error: Exception, modules: tuple[str, ...]) -> bool:
    """Whether a `raise` statement in a module that starts with one of `modules` created the error."""
    frame = last_frame(error)
    if frame is None or not module_of(frame).startswith(modules):
        return False
    return frame.tb_frame.f_code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def is_from_http(error: Exception) -> bool:
    """Whether the HTTP library of huggingface_hub raised it."""
    return any(kind.__module__.partition(".")[0] in HTTP_LIBRARIES for kind in type(error).__mro__)


def last_frame(error: BaseException) -> TracebackType | None:
    """The frame in which the error was raised."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame


def module_of(frame: TracebackType | None) -> str:
    """Name of the module of a frame."""
    return "" if frame is None else frame.tb_frame.f_globals.get("__name__") or ""


def disk_is_full(error: Exception) -> bool:
    """Whether writing failed because the disk is full; safetensors and torch report it only in the message."""
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    text = str(error)
    return any(f"(os error {number})" in text for number in FULL_DISK) or any(words in text for words in FAILED_WRITES)


def reason(error: Exception) -> str:
    """Another library's message as a sentence in one line, with the exception type if it is informative."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST_REASON:
        text = text[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."
    if isinstance(error, KeyError):
        text = f"unknown name {text}"
    elif not isinstance(error, (ValueError, OSError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
