"""The page: layout and events. Its content is rendered by the other modules; it runs as a Space or locally.

python spaces/eagle3_demo/app.py      # or: hf-eagle3 space
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


try:  # first: ZeroGPU must be imported before CUDA is initialised
    from spaces import GPU
except ImportError:

    def GPU(duration: int):
        """Without ZeroGPU: the function unchanged."""
        return lambda function: function


import gradio as gr
from answers import chat_html
from endpoints import Endpoints
from introduction import DETAILS_TITLE, details, headline
from limits import DRAFTERS, TREES, Limits, Request
from pair import PairSettings, leave_a_core
from progress import Progress
from recorded import Recorded, recorded_board
from scoreboard import message
from scripts import ENDED, OPENED, REPLAY, STARTED
from service import Service, View, interesting_cycle, tree_of, view_of

from hf_eagle3 import embedded, pairs


HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEVICE = "device"  # queue of runs, one at a time
SINGLE, CHAT = "Single prompt", "Chat"
PRESETS = {"math": ("Math", 0.0), "code": ("Code", 0.0), "roleplay": ("Role play", 0.8)}  # title, temperature
PROMPT_LINES = 4
PAIR_TITLES = {"embedded": "embedded, a toy", "smollm2": "SmolLM2-135M-Instruct, fetched once"}
HTML = {"apply_default_css": False, "elem_classes": "eagle3"}
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is downloaded


class Page:
    """
    The layout and its events.

    Args:
        service: Runs the requests.
        is_local: Whether users may load another pair.
    """

    def __init__(self, service: Service, is_local: bool):
        self.service, self.is_local = service, is_local
        self.settings: dict[str, gr.Component] = {}  # by field of a request
        self.recorded = Recorded()
        with gr.Blocks(title="EAGLE-3: the same text, faster", analytics_enabled=False) as self.blocks:
            self.headline = gr.Markdown(headline(service.pair))
            with gr.Accordion(DETAILS_TITLE, open=False):
                self.details = gr.Markdown(details(service.pair))
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self.lay_out_question()
                    self.lay_out_settings()
                with gr.Column(scale=5, min_width=320):
                    self.lay_out_answer()
            self.lay_out_tree()
            self.connect()
            Endpoints(service).add(concurrency_limit=1, concurrency_id=DEVICE)

    # -- layout -------------------------------------------------------------------------------------------------------

    def lay_out_question(self) -> None:
        """Mode, prompt, examples and buttons."""
        self.mode = gr.Radio([SINGLE, CHAT], value=SINGLE, label="Mode", elem_id="mode")
        self.prompt = gr.Textbox(
            embedded.prompts("math")[0]["prompt"],
            label="Prompt",
            lines=PROMPT_LINES,  # with more than one, Enter begins another
            max_lines=10,
            max_length=self.service.limits.prompt_characters,
            elem_id="prompt",
        )
        with gr.Row():
            self.presets = {
                domain: gr.Button(title, size="sm", min_width=60, elem_id=f"preset-{domain}")
                for domain, (title, _) in PRESETS.items()
            }
        with gr.Row():
            self.run = gr.Button("Run", variant="primary", min_width=80, elem_id="run")
            self.stop = gr.Button("Stop", variant="stop", min_width=80, interactive=False, elem_id="stop")
        self.message = gr.HTML("", elem_id="message", **HTML)
        self.new_chat = gr.Button("New chat", size="sm", visible=False, elem_id="new-chat")

    def lay_out_settings(self) -> None:
        """The fields of a request besides its prompt, and the form to load another pair."""
        fields, limits = self.settings, self.service.limits
        fields["compare"] = gr.Checkbox(Request.compare, label="Race: plain generate first, then with the draft")
        with gr.Accordion("Sampling and length", open=False):
            fields["max_new_tokens"] = gr.Slider(
                1, limits.new_tokens, min(Request.max_new_tokens, limits.new_tokens), step=1, label="Max new tokens"
            )
            fields["temperature"] = gr.Slider(
                0, 2, Request.temperature, step=0.05, label="Temperature", info="0: greedy"
            )
            fields["top_p"] = gr.Slider(
                0.05, 1, Request.top_p, step=0.05, label="Top-p", info="1: off; used at temperature above 0"
            )
            fields["top_k"] = gr.Slider(
                0, 200, Request.top_k, step=1, label="Top-k", info="0: off; used at temperature above 0"
            )
            fields["seed"] = gr.Number(Request.seed, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
        with gr.Accordion("Drafter and tree", open=False):
            fields["drafter"] = gr.Radio(
                [(title, name) for name, title in DRAFTERS.items()],
                value=Request.drafter,
                label="Drafter",
                info="suffix: what followed the same tokens before, in the prompt and the answer; without a model",
            )
            fields["tree"] = gr.Radio(
                list(TREES), value=Request.tree, label="Tree", info="auto: the size that is fastest on this machine"
            )
            fields["num_draft_tokens"] = gr.Slider(
                1, limits.draft_tokens, Request.num_draft_tokens, step=1, label="Draft tokens per cycle", visible=False
            )
            fields["tree_depth"] = gr.Slider(1, 16, Request.tree_depth, step=1, label="Depth", visible=False)
            fields["tree_top_k"] = gr.Slider(
                1, 16, Request.tree_top_k, step=1, label="Top-k of the tree", visible=False
            )
        if self.is_local:
            with gr.Accordion("Another pair", open=False):
                self.shipped = gr.Radio(
                    [(PAIR_TITLES[name], name) for name in pairs.NAMES],
                    value=self.service.settings.pair,
                    label="Pair that ships",
                    info="used unless a target is named below",
                    elem_id="shipped",
                )
                self.target = gr.Textbox(label="Target", placeholder="directory or Hub id")
                self.draft = gr.Textbox(label="Draft", placeholder="directory or Hub id of its EAGLE-3 draft")
                self.load = gr.Button("Load", size="sm", elem_id="load")
                self.load_message = gr.HTML("", elem_id="load-message", **HTML)

    def lay_out_answer(self) -> None:
        """Chat, scoreboard, texts and plots; before the first run, those of the recorded one."""
        view = view_of(self.recorded.events, self.recorded)
        self.chat = gr.HTML(chat_html([]), visible=False, elem_id="chat", **HTML)
        self.board = gr.HTML(recorded_board(self.recorded), elem_id="board", **HTML)
        self.texts = gr.HTML(view.texts, elem_id="texts", **HTML)
        self.replay = gr.Button("Replay both at the speed of the run", size="sm", elem_id="replay")
        self.plots = gr.HTML(view.plots, elem_id="plots", **HTML)

    def lay_out_tree(self) -> None:
        """The cycle slider and the tree, at full width."""
        cycles = self.recorded.progress.speculated
        number = interesting_cycle(cycles)
        self.cycle = gr.Slider(
            1, len(cycles), number, step=1, label="Draft tree of cycle", buttons=[], elem_id="cycle"
        )
        self.tree = gr.HTML(tree_of(self.recorded.progress, number, self.recorded), elem_id="tree", **HTML)

    # -- events -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect events to handlers. Runs share one queue; other events are handled immediately."""
        inputs = [self.mode, self.prompt, *self.settings.values()]
        outputs = [
            self.message, self.chat, self.board, self.texts, self.replay, self.plots, self.cycle, self.tree,
            self.run, self.stop, self.prompt,
        ]  # fmt: skip
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        asked = [self.run.click, self.prompt.submit]
        gr.on(asked, None, js=STARTED)
        gr.on(
            asked,
            self.on_run,
            inputs,
            outputs,
            concurrency_limit=1,
            concurrency_id=DEVICE,
            trigger_mode="once",
            show_progress="minimal",
            show_progress_on=[self.board],
            api_visibility="private",
        ).then(None, js=ENDED)
        self.blocks.load(None, js=OPENED)
        self.replay.click(None, js=REPLAY)
        self.stop.click(self.on_stop, None, None, **quick)
        self.cycle.input(self.on_cycle, self.cycle, self.tree, trigger_mode="always_last", **quick)
        self.mode.change(self.on_mode, self.mode, [self.chat, self.new_chat, self.prompt, self.run], **quick)
        self.new_chat.click(self.on_new_chat, None, [self.chat, self.message], **quick)
        sizes = [self.settings[name] for name in ("num_draft_tokens", "tree_depth", "tree_top_k")]
        self.settings["tree"].change(self.on_tree, self.settings["tree"], sizes, **quick)
        for domain, button in self.presets.items():
            button.click(
                lambda prompt, domain=domain: self.on_preset(domain, prompt),
                self.prompt,
                [self.prompt, self.settings["temperature"]],
                **quick,
            )
        if self.is_local:
            self.load.click(
                self.on_load,
                [self.target, self.draft, self.shipped],
                [self.load_message, self.headline, self.details, self.chat],
                concurrency_limit=1,
                concurrency_id=DEVICE,
                api_visibility="private",
            )
        self.blocks.unload(self.on_leave)

    def on_run(self, request: gr.Request, mode: str, prompt: str, *values) -> Iterator[dict]:
        """Run a request; errors become a message on the page and re-enable the controls."""
        fields = dict(zip(self.settings, values, strict=True))
        try:
            for view in self.service.follow(request.session_hash, mode == CHAT, prompt, **fields):
                yield self.rendered(view, mode == CHAT)
        except ValueError as error:
            yield {
                self.message: message(str(error)),
                self.run: gr.update(interactive=True),
                self.stop: gr.update(interactive=False),
            }

    def rendered(self, view: View, is_chat: bool) -> dict:
        """Values of the outputs of `on_run` that change."""
        progress, is_over = view.progress, not view.is_running
        values = {
            self.message: message(progress.message),
            self.board: view.board,
            self.texts: view.texts,
            self.run: gr.update(interactive=is_over),
            self.stop: gr.update(interactive=not is_over),
        }
        if view.plots_are_due:
            values[self.plots] = view.plots
        if is_chat and (is_over or not progress.cycles):
            values[self.chat] = chat_html(view.messages)
        if is_chat and is_over and not progress.message:
            values[self.prompt] = ""
        if is_over or not (progress.plain or progress.cycles):  # at the start, nothing of an earlier run remains
            values[self.replay] = gr.update(visible=progress.identical is not None)
            values |= self.rendered_tree(progress)
        return values

    def rendered_tree(self, progress: Progress) -> dict:
        """The slider and the tree of a run; both are hidden without a tree."""
        cycles = progress.speculated
        if not cycles:
            return {self.cycle: gr.update(visible=False), self.tree: ""}
        number = interesting_cycle(cycles)
        return {
            self.cycle: gr.update(maximum=max(len(cycles), 2), value=number, visible=len(cycles) > 1),
            self.tree: tree_of(progress, number, self.service.pair.tokenizer),
        }

    def on_stop(self, request: gr.Request) -> None:
        """Stop this user's run."""
        self.service.stop(request.session_hash)

    def on_cycle(self, number: float, request: gr.Request) -> str:
        """Show another cycle of this user's last run, or of the recorded one before the first."""
        progress, decoder = self.service.last_run(request.session_hash), self.service.pair.tokenizer
        if not progress.cycles:
            progress, decoder = self.recorded.progress, self.recorded
        try:
            return tree_of(progress, number, decoder)
        except ValueError as error:
            return message(str(error))

    def on_mode(self, mode: str) -> tuple:
        """Show the chat and its button in chat mode only, where the prompt is a message that Enter sends."""
        is_chat = mode == CHAT
        return (
            gr.update(visible=is_chat),
            gr.update(visible=is_chat),
            gr.update(label="Message (Enter sends)" if is_chat else "Prompt", lines=1 if is_chat else PROMPT_LINES),
            gr.update(value="Send" if is_chat else "Run"),
        )

    def on_new_chat(self, request: gr.Request) -> tuple:
        """Clear the chat."""
        self.service.new_chat(request.session_hash)
        return chat_html([]), ""

    def on_tree(self, tree: str) -> list:
        """Show only the sizes that apply to this tree."""
        return [gr.update(visible=tree in modes) for modes in (("static",), ("static", "chain"), ("static",))]

    def on_preset(self, domain: str, prompt: str) -> tuple[str, float]:
        """The next held-out prompt of a domain, and its temperature."""
        prompts = [row["prompt"] for row in embedded.prompts(domain)]
        place = (prompts.index(prompt) + 1) % len(prompts) if prompt in prompts else 0
        return prompts[place], PRESETS[domain][1]

    def on_load(self, target: str, draft: str, shipped: str) -> tuple:
        """Load another pair for all users of this page; on failure, show a message and keep the current one."""
        try:
            self.service.load(target.strip(), draft.strip(), shipped)
        except (ValueError, OSError) as error:
            return message(f"Not loaded: {error}"), gr.skip(), gr.skip(), gr.skip()
        return "", headline(self.service.pair), details(self.service.pair), chat_html([])

    def on_leave(self, request: gr.Request) -> None:
        """The page was closed: stop its run and delete its session."""
        self.service.sessions.forget(request.session_hash)


def build(
    settings: PairSettings | None = None, limits: Limits | None = None, is_local: bool | None = None
) -> gr.Blocks:
    """
    Load the pair and build the page.

    Args:
        settings, limits: Default: from the environment.
        is_local: Whether users may load another pair. Default: only if the page is not reachable from other machines,
            whose users must not make it read directories or download models.
    """
    limits = limits or Limits.from_environment()
    service = Service(settings or PairSettings.from_environment(), limits)
    service.generate = with_zero_gpu_errors(GPU(duration=limits.seconds)(service.generate))
    if is_local is None:
        is_local = "SPACE_ID" not in os.environ and os.environ.get("GRADIO_SERVER_NAME", LOOPBACK[0]) in LOOPBACK
    return Page(service, is_local).blocks.queue(max_size=limits.waiting)


def with_zero_gpu_errors(generate: Callable) -> Callable:
    """`generate` that raises ZeroGPU's messages to the user (no quota left, no device free) as ValueError."""

    def wrapped(*arguments) -> Iterator:
        try:
            yield from generate(*arguments)
        except gr.Error as error:
            raise ValueError(error.message) from None

    return wrapped


def launch(blocks: gr.Blocks, **options):
    """Launch without external resources or recording, with bounded sessions."""
    return blocks.launch(
        theme=gr.themes.Default(**FONTS),
        css_paths=HERE / "style.css",
        state_session_capacity=256,
        max_file_size="1mb",
        run_history=False,
        enable_monitoring=False,
        footer_links=["api", "gradio"],
        ssr_mode=False,
        **options,
    )


def main(settings: PairSettings | None = None, is_local: bool | None = None, **options) -> None:
    """Serve the page until interrupted; arguments as for `build`, options as for `launch`."""
    leave_a_core()
    launch(build(settings, is_local=is_local), **options)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"EAGLE-3 demo: {error}")
