"""Endpoints for gradio_client, each with the client's own session. Does not know the page."""

import gradio as gr
from limits import Request
from service import Service, figures, tree_figures


class Endpoints:
    """
    Args:
        service: Runs the requests.
    """

    def __init__(self, service: Service):
        self.service = service

    def add(self, **queued) -> None:
        """Add them to the page that is being built; `queued` are the options of those that run the models."""
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
        drafter: str = Request.drafter,
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
            "compare": compare, "drafter": drafter,
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
