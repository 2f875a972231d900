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
from answers import answers_html, chat_html
from introduction import introduction
from limits import TREES, Limits, Request
from pair import PairSettings, leave_a_core
from progress import Progress
from scoreboard import message, scoreboard
from service import Service, View, figures, interesting_cycle, tree_figures, tree_of

from hf_eagle3 import embedded


HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEVICE = "device"  # queue of runs, one at a time
SINGLE, CHAT = "Single prompt", "Chat"
PRESETS = {"math": ("Math", 0.0), "code": ("Code", 0.0), "roleplay": ("Role play", 0.8)}  # title, temperature
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is downloaded
SHOW_BOARD = """() => {
    const board = document.querySelector("#board"), top = board.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) board.scrollIntoView({behavior: "smooth"});
}"""  # on a phone the board is below the controls


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
        with gr.Blocks(title="EAGLE-3: the same text, faster", analytics_enabled=False) as self.blocks:
            self.introduction = gr.Markdown(introduction(self.service.pair))
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self.lay_out_question()
                    self.lay_out_settings()
                with gr.Column(scale=5, min_width=320):
                    self.lay_out_answer()
            self.lay_out_tree()
            self.connect()
            self.add_endpoints()

    # -- layout -------------------------------------------------------------------------------------------------------

    def lay_out_question(self) -> None:
        """Mode, prompt, examples and buttons."""
        self.mode = gr.Radio([SINGLE, CHAT], value=SINGLE, label="Mode", elem_id="mode")
        self.prompt = gr.Textbox(
            embedded.prompts("math")[0]["prompt"],
            label="Prompt",
            lines=4,
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
        with gr.Accordion("Draft tree", open=False):
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
                self.target = gr.Textbox(label="Target", placeholder="directory or Hub id; empty: the embedded pair")
                self.draft = gr.Textbox(label="Draft", placeholder="directory or Hub id of its EAGLE-3 draft")
                self.load = gr.Button("Load", size="sm", elem_id="load")

    def lay_out_answer(self) -> None:
        """Messages, chat, scoreboard, texts and plots."""
        html = {"apply_default_css": False, "elem_classes": "eagle3"}
        self.message = gr.HTML("", elem_id="message", **html)
        self.chat = gr.HTML(chat_html([]), visible=False, elem_id="chat", **html)
        self.board = gr.HTML(scoreboard(Progress()), elem_id="board", **html)
        self.texts = gr.HTML(answers_html("", "", True), elem_id="texts", **html)
        self.plots = gr.HTML("", elem_id="plots", **html)

    def lay_out_tree(self) -> None:
        """The cycle slider and the tree, at full width."""
        self.cycle = gr.Slider(
            1, 2, 1, step=1, label="Draft tree of cycle", visible=False, buttons=[], elem_id="cycle"
        )
        self.tree = gr.HTML("", elem_id="tree", apply_default_css=False, elem_classes="eagle3")

    # -- events -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect events to handlers. Runs share one queue; other events are handled immediately."""
        inputs = [self.mode, self.prompt, *self.settings.values()]
        outputs = [
            self.message, self.chat, self.board, self.texts, self.plots, self.cycle, self.tree,
            self.run, self.stop, self.prompt,
        ]  # fmt: skip
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [self.run.click, self.prompt.submit],
            self.on_run,
            inputs,
            outputs,
            concurrency_limit=1,
            concurrency_id=DEVICE,
            trigger_mode="once",
            show_progress="minimal",
            show_progress_on=[self.board],
            api_visibility="private",
        )
        self.run.click(None, js=SHOW_BOARD)
        self.stop.click(self.on_stop, None, None, **quick)
        self.cycle.input(self.on_cycle, self.cycle, [self.message, self.tree], trigger_mode="always_last", **quick)
        self.mode.change(self.on_mode, self.mode, [self.chat, self.new_chat], **quick)
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
                [self.target, self.draft],
                [self.message, self.introduction, self.chat],
                concurrency_limit=1,
                concurrency_id=DEVICE,
                api_visibility="private",
            )
        self.blocks.unload(self.on_leave)

    def on_run(self, request: gr.Request, mode: str, prompt: str, *values) -> Iterator[tuple]:
        """Run a request; errors become a message on the page and re-enable the controls."""
        fields = dict(zip(self.settings, values, strict=True))
        try:
            for view in self.service.follow(request.session_hash, mode == CHAT, prompt, **fields):
                yield self.rendered(view, mode == CHAT)
        except ValueError as error:
            yield (
                message(str(error)),
                *[gr.skip()] * 6,
                gr.update(interactive=True),
                gr.update(interactive=False),
                gr.skip(),
            )

    def rendered(self, view: View, is_chat: bool) -> tuple:
        """Values of the outputs of `on_run`."""
        progress, is_over = view.progress, not view.is_running
        ours, plain = view.ours.html(), view.plain.html()
        slider, tree = gr.skip(), gr.skip()
        if is_over:
            slider, tree = gr.update(visible=False), ""
            if cycles := progress.speculated:
                number = interesting_cycle(cycles)
                slider = gr.update(maximum=max(len(cycles), 2), value=number, visible=len(cycles) > 1)
                tree = tree_of(progress, number, self.service.pair.tokenizer)
        return (
            message(progress.message),
            chat_html(view.messages) if is_chat and (is_over or not progress.cycles) else gr.skip(),
            view.board,
            answers_html(ours, plain, progress.compare),
            view.plots if view.plots_are_due else gr.skip(),
            slider,
            tree,
            gr.update(interactive=is_over),
            gr.update(interactive=not is_over),
            "" if is_chat and is_over and not progress.message else gr.skip(),
        )

    def on_stop(self, request: gr.Request) -> None:
        """Stop this user's run."""
        self.service.stop(request.session_hash)

    def on_cycle(self, number: float, request: gr.Request) -> tuple:
        """Show another cycle of this user's last run."""
        try:
            return "", tree_of(self.service.last_run(request.session_hash), number, self.service.pair.tokenizer)
        except ValueError as error:
            return message(str(error)), gr.skip()

    def on_mode(self, mode: str) -> tuple:
        """Show the chat and its button in chat mode only."""
        return gr.update(visible=mode == CHAT), gr.update(visible=mode == CHAT)

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

    def on_load(self, target: str, draft: str) -> tuple:
        """Load another pair for all users of this page; on failure, show a message and keep the current one."""
        try:
            self.service.load(PairSettings(target.strip(), draft.strip()))
        except (ValueError, OSError) as error:
            return message(f"Not loaded: {error}"), gr.skip(), gr.skip()
        return "", introduction(self.service.pair), chat_html([])

    def on_leave(self, request: gr.Request) -> None:
        """The page was closed: stop its run and delete its session."""
        self.service.sessions.forget(request.session_hash)

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def add_endpoints(self) -> None:
        """Endpoints for gradio_client, each with the client's own session."""
        queued = {"concurrency_limit": 1, "concurrency_id": DEVICE}
        gr.api(self.race, api_name="race", **queued)
        gr.api(self.say, api_name="chat", **queued)
        gr.api(self.draft_tree, api_name="tree", queue=False)
        gr.api(self.end, api_name="stop", queue=False)
        gr.api(self.forget, api_name="new_chat", queue=False)

    def race(
        self,
        prompt: str,
        max_new_tokens: int = Request.max_new_tokens,
        temperature: float = Request.temperature,
        top_p: float = Request.top_p,
        top_k: int = Request.top_k,
        seed: int = Request.seed,
        tree: str = Request.tree,
        num_draft_tokens: int = Request.num_draft_tokens,
        tree_depth: int = Request.tree_depth,
        tree_top_k: int = Request.tree_top_k,
        compare: bool = Request.compare,
        request: gr.Request = None,
    ) -> dict:
        """
        Generate with the draft, and before that with plain `generate` unless `compare` is false.

        Returns:
            text, token_ids, seconds, plain_token_ids, plain_seconds, identical, speedup, acceptance_length,
            accepted_tokens (per cycle), notes, is_stopped.
        """
        fields = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed,
            "tree": tree, "num_draft_tokens": num_draft_tokens, "tree_depth": tree_depth, "tree_top_k": tree_top_k,
            "compare": compare,
        }  # fmt: skip
        return self.complete(request, False, prompt, fields)

    def say(
        self,
        message: str,
        max_new_tokens: int = Request.max_new_tokens,
        temperature: float = Request.temperature,
        seed: int = Request.seed,
        compare: bool = False,
        request: gr.Request = None,
    ) -> dict:
        """The next turn of this client's chat; returns the same fields as `/race`."""
        fields = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "compare": compare}
        return self.complete(request, True, message, fields)

    def complete(self, request: gr.Request, is_chat: bool, prompt: str, fields: dict) -> dict:
        """A complete run for a client; errors are raised as `gr.Error`."""
        try:
            *_, view = self.service.follow(request.session_hash, is_chat, prompt, **fields)
            return figures(view, self.service.pair.tokenizer)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def draft_tree(self, cycle: int, request: gr.Request = None) -> dict:
        """
        The draft tree of a cycle (counted from 1) of this client's last run: tokens, parents, scores, accepted nodes,
        and the reason for its size in the mode "auto".
        """
        try:
            return tree_figures(self.service.last_run(request.session_hash), cycle)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def end(self, request: gr.Request = None) -> None:
        """Stop this client's run."""
        self.service.stop(request.session_hash)

    def forget(self, request: gr.Request = None) -> None:
        """Clear this client's chat."""
        self.service.new_chat(request.session_hash)


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
