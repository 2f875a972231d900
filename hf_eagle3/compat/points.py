"""Points of contact with transformers: names that it does not promise to its users, and how each is looked up.

The modules of this package declare theirs with `uses`, next to the code that needs them. A missing name becomes a
stand-in that raises at its first use, so that importing always works. Does not know what the points are for.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .versions import is_at_least, transformers_version


# What fails without a point: any drafting, fast drafting with a logits processor, training, a command.
GENERATE, PROCESSORS, TRAINING, COMMANDS = "generate", "processors", "training", "commands"


class MissingPoint(RuntimeError):
    """A name of transformers is missing in the installed version."""


@dataclass(frozen=True)
class Point:
    """
    A name of transformers.

    Attributes:
        owner: Dotted path of the module or class that has it.
        name: The attribute's name.
        used_for: What needs it.
        scope: What fails without it.
        since: The first version that has it; it is not needed in earlier ones.
        parameters: Arguments that it must accept.
        holder: Creates an object that must have the attribute, instead of `owner` itself.
        is_word: Whether `name` is an ordinary word that unrelated code may use too.
    """

    owner: str
    name: str
    used_for: str
    scope: str = GENERATE
    since: str | None = None
    parameters: tuple[str, ...] = ()
    holder: Callable[[], Any] | None = None
    is_word: bool = False

    @property
    def path(self) -> str:
        """`Owner.name` without modules."""
        owner = self.owner.rsplit(".", 1)[-1]
        return f"{owner}.{self.name}" if owner[:1].isupper() else self.name

    def fault(self) -> str | None:
        """What is wrong with the point in the installed transformers, or `None`."""
        if self.since is not None and not is_at_least(self.since):
            return None
        try:
            found = getattr(resolve(self.owner) if self.holder is None else self.holder(), self.name)
        except Exception as error:  # a changed transformers may raise anything
            return f"missing ({type(error).__name__}: {error})".replace("\n", " ")
        if not self.parameters:
            return None
        taken = inspect.signature(found).parameters
        lacking = [f"`{name}`" for name in self.parameters if name not in taken]
        return f"found without {', '.join(lacking)}" if lacking else None


POINTS: list[Point] = []


def uses(owner: str, name: str, used_for: str, **details) -> Any:
    """Declare a point (see [`Point`]) and return the object, or a stand-in if it is missing."""
    point = Point(owner, name, used_for, **details)
    POINTS.append(point)
    if point.holder is not None:
        return None
    try:
        return getattr(resolve(owner), name)
    except (ImportError, AttributeError):
        return _stand_in(f"{owner}.{name}")


def first_fault(scopes: tuple[str, ...]) -> tuple[Point, str] | None:
    """The first faulty point of `scopes` and its fault, or `None`."""
    for point in POINTS:
        if point.scope in scopes and (fault := point.fault()) is not None:
            return point, fault
    return None


@cache
def resolve(path: str) -> Any:
    """
    The module, or class in a module, at a dotted `path`.

    Raises:
        ImportError, AttributeError: it does not exist.
    """
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            if count == 1:
                raise
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


class _Missing(type):
    """Metaclass of stand-ins: they can be subclassed, but creating an instance raises."""

    def __call__(cls, *args, **kwargs):
        if "stands_for" in vars(cls):
            raise MissingPoint(f"transformers {transformers_version} has no `{vars(cls)['stands_for']}`.")
        return super().__call__(*args, **kwargs)


def _stand_in(path: str) -> type:
    return _Missing(path.rsplit(".", 1)[-1], (), {"stands_for": path})


def is_missing(found: Any) -> bool:
    """Whether `uses` returned a stand-in."""
    return isinstance(found, _Missing)
