"""Backend of the page and the API: runs, chats, trees. Knows the pair and the user sessions; does not know gradio.

A user is identified by a key, the session of the page. Errors with a message for the user are ValueErrors.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import pair as pairs
from answers import answers_html, looks_like_code
from conversation import Conversation, prompt_ids, turn_ids
from limits import Limits, Request, checked
from pair import Pair, PairSettings
from plots import plots
from progress import Progress
from race import PLAIN, SPECULATIVE, Event, PlainToken, Probabilities, device_lock, explained, run
from scoreboard import scoreboard
from sessions import Session, Sessions
from tokens import ColouredText, PlainText
from tree_view import tree_html

from hf_eagle3 import CycleRecord
from hf_eagle3.token_ids import Decoder


INTERVAL = 0.15  # seconds between updates of the page
BRANCHED = 6
PLOT_INTERVAL = 0.6  # and of its plots, which a browser on the same cores renders slowly
STOPPED = "Stopped. The text so far is kept."


@dataclass
class View:
    """
    A run as shown on the page: HTML, and statistics for API clients.

    Attributes:
        is_running: Whether more events follow.
        plots_are_due: Whether to redraw the plots: at the start, at the end, and periodically in between.
        messages: Turns of the chat, including the current one.
    """

    progress: Progress
    ours: ColouredText
    plain: PlainText
    is_running: bool = True
    plots_are_due: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def board(self) -> str:
        """The scoreboard as HTML."""
        return scoreboard(self.progress)

    @property
    def texts(self) -> str:
        """Both texts as HTML."""
        progress, is_code = self.progress, looks_like_code(self.plain.text or self.ours.text)
        ways = {"plain": PLAIN, "ours": SPECULATIVE}
        seconds = {name: progress.finished[way].seconds for name, way in ways.items() if way in progress.finished}
        return answers_html(self.ours.html(), self.plain.html(), progress.compare, is_code, seconds)

    @property
    def plots(self) -> str:
        """The plots as HTML, redrawn on each access."""
        return plots(self.progress)

    def add(self, event: Event) -> None:
        """Process the next event of the run."""
        self.progress.add(event)
        if isinstance(event, PlainToken):
            self.plain.add(event.token, event.seconds)
        elif isinstance(event, CycleRecord):
            self.ours.add(event)
        elif isinstance(event, Probabilities):
            self.ours.add_probabilities(event.values)


def view_of(events: Sequence[Event], tokenizer: Decoder) -> View:
    """The view of a complete run."""
    view = View(Progress(), ColouredText(tokenizer), PlainText(tokenizer), is_running=False)
    for event in events:
        view.add(event)
    return view


class Service:
    """
    Args:
        settings, limits: The pair to load, and the limits of requests.
    """

    def __init__(self, settings: PairSettings, limits: Limits):
        self.settings, self.limits = settings, limits
        self.sessions = Sessions(limits.sessions, limits.caches)
        self.pair: Pair = pairs.load(settings)
        pairs.warm_up(self.pair)

    def load(self, target: str, draft: str, shipped: str) -> None:
        """
        Replace the pair, by name or by one that ships, and drop all sessions, which belong to the old one. A failure
        changes nothing.
        """
        with device_lock:
            names = {"target": target, "draft": draft, "pair": shipped}
            settings = replace(self.settings, **names, chat_template_kwargs="")  # those were the other pair's
            pair = pairs.load(settings)
            pairs.warm_up(pair)
            self.settings, self.pair = settings, pair
            self.sessions.forget_all()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def generate(self, ids: list[int], request: Request, key: str | None) -> Iterator[list[Event]]:
        """Generate on the device; arguments and events are picklable. `key`: the chat whose caches are used."""
        keeps = key is not None and not pairs.is_zero_gpu()  # a ZeroGPU process ends with the call
        caches = self.sessions.use(key).caches if keeps else None
        yield from run(self.pair, ids, request, self.limits.seconds, INTERVAL, caches)

    def follow(self, key: str | None, is_chat: bool, prompt: str, **values) -> Iterator[View]:
        """
        One run for one user, with a view several times per second; the last view is complete.

        Args:
            key: The user's session.
            is_chat: Whether the prompt is the next turn of the user's chat.
            prompt, values: Fields of [`Request`].

        Raises:
            ValueError: an invalid request, or an internal error without any text of the user.
        """
        try:
            yield from self._follow(key, is_chat, prompt, values)
        except (ValueError, GeneratorExit):
            raise
        except Exception as error:
            raise ValueError(explained(error)) from None

    def _follow(self, key: str | None, is_chat: bool, prompt: str, values: dict) -> Iterator[View]:
        request = checked(self.limits, prompt, **values)
        self.pair.drafter(request.drafter, request.tree, **request.tree_sizes)  # invalid sizes fail here
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
            events.close()  # also if the user left: frees the device for the next run
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
                f"{what} has {len(ids)} tokens; with {request.max_new_tokens} new ones the target's context allows "
                f"{most}. {remedy} or request fewer new tokens."
            )

    def _remember_turn(self, session: Session, view: View, ids: list[int]) -> None:
        """Append the answer, perhaps incomplete, to the chat; without any token the chat is unchanged."""
        tokens = view.progress.ids or view.progress.plain_ids
        if not tokens:
            view.messages = session.conversation.messages
            return
        text = self.pair.tokenizer.decode(tokens, skip_special_tokens=True)
        view.messages = [*view.messages, {"role": "assistant", "content": text}]
        session.conversation = Conversation(view.messages, ids + tokens)

    def stop(self, key: str | None) -> None:
        """Stop the user's run, if any."""
        self.sessions.use(key).stop.set()

    def new_chat(self, key: str | None) -> None:
        """Clear the user's chat."""
        session = self.sessions.use(key)
        session.conversation, session.caches = Conversation([], []), {}

    def last_run(self, key: str | None) -> Progress:
        """The user's last run; an empty one before the first."""
        return self.sessions.use(key).progress


def checked_cycle(progress: Progress, number: int) -> CycleRecord:
    """Cycle `number`, from 1; ValueError if there is none."""
    cycles = progress.speculated
    if not cycles:
        raise ValueError("There is no draft tree yet. Start a run first.")
    if not isinstance(number, (int, float)) or not 1 <= number <= len(cycles) or number != int(number):
        raise ValueError(f"Cycle must be an integer from 1 to {len(cycles)}.")
    return cycles[int(number) - 1]


def tree_of(progress: Progress, number: int, tokenizer: Decoder) -> str:
    """The draft tree of cycle `number`, from 1, as HTML."""
    record = checked_cycle(progress, number)
    return tree_html(record, tokenizer, len(progress.speculated), progress.why(int(number)))


def interesting_cycle(cycles: list[CycleRecord]) -> int:
    """
    Number, from 1, of the cycle to show first: among the last `BRANCHED` whose tree branched (all cycles if none did)
    that of the most accepted tokens, then the latest: there "auto" has settled.
    """
    branched = [i for i, cycle in enumerate(cycles) if branches(cycle)]
    candidates = branched[-BRANCHED:] or range(len(cycles))
    return 1 + max(candidates, key=lambda i: (cycles[i].num_accepted_tokens, i))


def branches(cycle: CycleRecord) -> bool:
    """Whether a node of the draft tree has several children."""
    parents = cycle.tree_parents[1:]
    return len(set(parents)) < len(parents)


def figures(view: View, tokenizer) -> dict:
    """Statistics of a complete run for API clients."""
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
