"""What the page and the API ask for: runs, chats, trees. Knows the pair and the visitors; does not know gradio.

A visitor is a key (the page's session). What goes wrong and can be told is a ValueError.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pair as pairs
from conversation import Conversation, prompt_ids, turn_ids
from limits import Limits, Request, checked
from pair import Pair, PairSettings
from plots import plots
from progress import Progress
from race import Event, PlainToken, Probabilities, device_lock, explained, run
from scoreboard import scoreboard
from sessions import Session, Sessions
from tokens import ColouredText, PlainText
from tree_view import tree_html

from hf_eagle3 import CycleRecord
from hf_eagle3.token_ids import Decoder


INTERVAL = 0.15  # seconds between updates of a page
PLOT_INTERVAL = 0.6  # and of its plots: a browser on the same cores takes longer to show them than we to draw them
STOPPED = "Stopped. What was written so far stays."


@dataclass
class View:
    """
    A run as the page shows it: HTML, and figures for API clients.

    Attributes:
        is_running: Whether more is to come.
        plots_are_due: Whether the plots are worth drawing again: at the start, at the end, now and then in between.
        messages: Turns of the chat, this one included.
    """

    progress: Progress
    ours: ColouredText
    plain: PlainText
    is_running: bool = True
    plots_are_due: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def board(self) -> str:
        """The figures, as HTML."""
        return scoreboard(self.progress)

    @property
    def plots(self) -> str:
        """The plots, as HTML; drawn anew each time."""
        return plots(self.progress)

    def add(self, event: Event) -> None:
        """Takes the next event of the run."""
        self.progress.add(event)
        if isinstance(event, PlainToken):
            self.plain.add(event.token)
        elif isinstance(event, CycleRecord):
            self.ours.add(event)
        elif isinstance(event, Probabilities):
            self.ours.add_probabilities(event.values)


class Service:
    """
    Args:
        settings, limits: Which pair, and what a visitor may ask for.
    """

    def __init__(self, settings: PairSettings, limits: Limits):
        self.limits = limits
        self.sessions = Sessions(limits.sessions, limits.caches)
        self.pair: Pair = pairs.load(settings)
        pairs.warm_up(self.pair)

    def load(self, settings: PairSettings) -> None:
        """Another pair instead; what visitors had is of the old one and is forgotten. A failure changes nothing."""
        with device_lock:
            pair = pairs.load(settings)
            pairs.warm_up(pair)
            self.pair = pair
            self.sessions.forget_all()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def generate(self, ids: list[int], request: Request, key: str | None) -> Iterator[list[Event]]:
        """On the device; arguments and events can be pickled. `key` names the chat whose caches serve, if any."""
        keeps = key is not None and not pairs.is_zero_gpu()  # a process of ZeroGPU ends, and what it holds with it
        caches = self.sessions.use(key).caches if keeps else None
        yield from run(self.pair, ids, request, self.limits.seconds, INTERVAL, caches)

    def follow(self, key: str | None, is_chat: bool, prompt: str, **values) -> Iterator[View]:
        """
        One run for one visitor, seen several times a second; the last view is complete.

        Args:
            key: The visitor.
            is_chat: Whether the prompt is the next turn of the visitor's chat.
            prompt, values: Fields of [`Request`].

        Raises:
            ValueError: what the visitor can mend, or that something is broken, without any text of the visitor's.
        """
        try:
            yield from self._follow(key, is_chat, prompt, values)
        except (ValueError, GeneratorExit):
            raise
        except Exception as error:
            raise ValueError(explained(error)) from None

    def _follow(self, key: str | None, is_chat: bool, prompt: str, values: dict) -> Iterator[View]:
        request = checked(self.limits, prompt, **values)
        self.pair.draft.with_tree(request.tree, **request.tree_sizes)  # sizes that no tree can have: said at once
        session = self.sessions.use(key)
        session.stop.clear()
        past = session.conversation
        tokenizer, kwargs = self.pair.tokenizer, self.pair.template_kwargs
        ids = turn_ids(tokenizer, past, prompt, kwargs) if is_chat else prompt_ids(tokenizer, prompt, kwargs)
        self._check_length(ids, request, is_chat and bool(past.messages))
        progress = Progress(compare=request.compare, prompt_tokens=len(ids))
        view = View(progress, ColouredText(tokenizer), PlainText(tokenizer))
        if is_chat:
            view.messages = [*past.messages, {"role": "user", "content": prompt}]
        yield view
        drawn = time.monotonic()
        events = self.generate(ids, request, key if is_chat else None)
        try:
            for batch in events:
                for event in batch:
                    view.add(event)
                if session.stop.is_set():
                    progress.is_stopped, progress.message = True, STOPPED
                    break
                if batch:
                    view.plots_are_due = time.monotonic() - drawn >= PLOT_INTERVAL
                    drawn = time.monotonic() if view.plots_are_due else drawn
                    yield view
        finally:
            events.close()  # also where the visitor left: the device is free before anybody else's turn
        session.progress = progress
        if is_chat:
            self._remember_turn(session, view, ids)
        view.is_running, view.plots_are_due = False, True
        yield view

    def _check_length(self, ids: list[int], request: Request, has_past: bool) -> None:
        most = self.pair.context - request.max_new_tokens
        if len(ids) > most:
            what, remedy = ("This chat", "Start a new one") if has_past else ("The prompt", "Shorten it")
            raise ValueError(
                f"{what} has {len(ids)} tokens; beside {request.max_new_tokens} new ones the target has room for "
                f"{most}. {remedy} or ask for fewer new tokens."
            )

    def _remember_turn(self, session: Session, view: View, ids: list[int]) -> None:
        """An answer that was stopped counts as far as it came; none at all leaves the chat as it was."""
        tokens = view.progress.ids or view.progress.plain_ids
        if not tokens:
            view.messages = session.conversation.messages
            return
        text = self.pair.tokenizer.decode(tokens, skip_special_tokens=True)
        view.messages = [*view.messages, {"role": "assistant", "content": text}]
        session.conversation = Conversation(view.messages, ids + tokens)

    def stop(self, key: str | None) -> None:
        """Ends the visitor's run, if there is one."""
        self.sessions.use(key).stop.set()

    def new_chat(self, key: str | None) -> None:
        """Forgets the visitor's chat."""
        session = self.sessions.use(key)
        session.conversation, session.caches = Conversation([], []), {}

    def last_run(self, key: str | None) -> Progress:
        """The visitor's last complete run; an empty one before the first."""
        return self.sessions.use(key).progress


def checked_cycle(progress: Progress, number: int) -> CycleRecord:
    """Cycle `number`, from 1."""
    cycles = progress.speculated
    if not cycles:
        raise ValueError("There is no draft tree yet. Run something first.")
    if not isinstance(number, (int, float)) or not 1 <= number <= len(cycles) or number != int(number):
        raise ValueError(f"Cycle must be a whole number from 1 to {len(cycles)}.")
    return cycles[int(number) - 1]


def tree_of(progress: Progress, number: int, tokenizer: Decoder) -> str:
    """The draft tree of cycle `number`, from 1, as HTML."""
    record = checked_cycle(progress, number)
    return tree_html(record, tokenizer, len(progress.speculated), progress.why(int(number)))


def interesting_cycle(cycles: list[CycleRecord]) -> int:
    """Number, from 1, of the cycle that is shown first: the one that accepted most, the larger tree where several."""
    best = max(range(len(cycles)), key=lambda i: (cycles[i].num_accepted_tokens, len(cycles[i].tree_tokens), -i))
    return best + 1


def figures(view: View, tokenizer) -> dict:
    """A complete run for API clients."""
    progress = view.progress
    if progress.message and not progress.is_stopped:
        raise ValueError(progress.message)
    return {
        "text": tokenizer.decode(progress.ids, skip_special_tokens=True),
        "token_ids": progress.ids,
        "seconds": progress.figures("speculative").seconds,
        "plain_token_ids": progress.plain_ids if progress.compare else None,
        "plain_seconds": progress.figures("plain").seconds if progress.compare else None,
        "identical": progress.identical,
        "speedup": progress.speedup,
        "acceptance_length": progress.acceptance_length,
        "accepted_tokens": [cycle.num_accepted_tokens for cycle in progress.speculated],
        "notes": progress.notes,
        "is_stopped": progress.is_stopped,
    }


def tree_figures(progress: Progress, number: int) -> dict:
    """The tree of cycle `number`, from 1, for API clients."""
    return {**asdict(checked_cycle(progress, number)), "why": progress.why(number)}
