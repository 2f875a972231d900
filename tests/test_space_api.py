"""The Space through gradio_client: many visitors at once, mistakes as messages, stopping, no text in logs."""

import logging
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conversation import prompt_ids
from limits import DRAFTERS
from space_page import served
from transformers import GenerationMixin, set_seed

from hf_eagle3 import embedded


gradio = pytest.importorskip("gradio", reason="needs the extra `space`: pip install 'hf-eagle3[space]'")
gradio_client = pytest.importorskip("gradio_client")

VISITORS = 20


@pytest.fixture(scope="module")
def address():
    with served(new_tokens=256, waiting=VISITORS) as (address, _):
        yield address


def client(address: str):
    return gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": 120})  # twenty on two cores


def test_twenty_visitors_at_once_get_their_own_text(address):
    """Prompts and seeds of their own, sampled: what any other visitor's run left behind would show."""
    target, _, tokenizer = embedded.load_pair()
    asked = [(f"What is {number} plus {number + 1}?", number) for number in range(VISITORS)]
    expected = []
    for prompt, seed in asked:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        set_seed(seed)
        out = target.generate(ids, max_new_tokens=8, do_sample=True, temperature=1.0, top_k=0)
        expected.append(out[0, ids.shape[1] :].tolist())
    assert len(set(map(tuple, expected))) > VISITORS / 2

    def ask(question):
        prompt, seed = question
        visitor = client(address)
        run = visitor.predict(prompt, max_new_tokens=8, temperature=1.0, seed=seed, api_name="/race")
        return run, visitor.predict(1, api_name="/tree")

    with ThreadPoolExecutor(VISITORS) as pool:
        answers = list(pool.map(ask, asked))
    assert [run["token_ids"] for run, _ in answers] == expected
    assert all(run["identical"] and run["plain_token_ids"] == run["token_ids"] for run, _ in answers)
    for run, tree in answers:  # and their own trees
        assert tree["tree_tokens"][0] == run["token_ids"][0]
        assert tree["tokens"] == run["token_ids"][1 : 1 + len(tree["tokens"])]


def test_chats_are_apart_and_remembered(address):
    one, other = client(address), client(address)
    first = one.predict("Hello.", max_new_tokens=6, api_name="/chat")
    assert other.predict("Hello.", max_new_tokens=6, api_name="/chat")["token_ids"] == first["token_ids"]
    second = one.predict("Go on.", max_new_tokens=6, compare=True, api_name="/chat")
    assert second["identical"] is True
    one.predict(api_name="/new_chat")
    assert one.predict("Hello.", max_new_tokens=6, api_name="/chat")["token_ids"] == first["token_ids"]


@pytest.mark.parametrize(
    ("prompt", "options", "expected"),
    [
        ("", {}, "prompt is empty"),
        ("x" * 5000, {}, "5000 characters"),
        ("hello", {"max_new_tokens": 10_000}, "Max new tokens is 10000"),
        ("hello", {"tree": "forest"}, "auto, static, chain"),
        ("hello", {"drafter": "oracle"}, "eagle3, suffix, eagle3\\+suffix"),
        ("hello", {"tree": "static", "tree_depth": 1, "tree_top_k": 2}, "drafts only 2 nodes"),
    ],
)
def test_mistakes_are_messages(address, prompt, options, expected):
    with pytest.raises(gradio_client.exceptions.AppError, match=expected):
        client(address).predict(prompt, api_name="/race", **options)


def test_a_client_chooses_the_drafter(address):
    prompt, visitor = "7 8 9 7 8 9 7 8 9", client(address)
    runs = {name: visitor.predict(prompt, max_new_tokens=8, drafter=name, api_name="/race") for name in DRAFTERS}
    assert all(run["identical"] for run in runs.values())
    assert len({str(run["token_ids"]) for run in runs.values()}) == 1


def test_a_visitor_can_stop_a_run(address):
    visitor = client(address)
    job = visitor.submit("Tell me a long story.", max_new_tokens=256, seed=1, temperature=1.5, api_name="/race")
    while not job.done():  # a stop before it begins is of no run
        time.sleep(0.1)
        visitor.predict(api_name="/stop")
    run = job.result()
    assert run["is_stopped"] is True
    assert run["identical"] is None
    assert len(run["token_ids"]) < 256
    assert visitor.predict("Hi", max_new_tokens=4, api_name="/race")["identical"] is True


def test_no_text_of_visitors_is_logged(address, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        visitor = client(address)
        visitor.predict("xylophone please", max_new_tokens=4, api_name="/race")
        with pytest.raises(gradio_client.exceptions.AppError):
            visitor.predict("xylophone " * 1000, api_name="/chat")
        with pytest.raises(gradio_client.exceptions.AppError):
            visitor.predict("xylophone", tree="xylophone", api_name="/race")
    captured = capfd.readouterr()
    server = "\n".join(record.getMessage() for record in caplog.records if record.name != "httpx")
    assert "xylophone" not in captured.out + captured.err + server


@pytest.fixture
def zero_gpu(monkeypatch):
    """Stands in for ZeroGPU, whose decorator runs a function in a process that has borrowed a GPU for so many seconds:
    what goes in and out is pickled. Filled with those seconds, call by call."""
    import app

    borrowed = []

    def decorator(duration):
        def decorated(function):
            def elsewhere(*arguments):
                borrowed.append(duration)
                if len(borrowed) > 3:
                    raise gradio.Error("You have no quota left.")
                for events in function(*pickle.loads(pickle.dumps(arguments))):
                    yield pickle.loads(pickle.dumps(events))

            return elsewhere

        return decorated

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(app, "GPU", decorator)
    return borrowed


def test_on_zero_gpu_all_generation_runs_in_borrowed_time(zero_gpu, monkeypatch):
    generated, generate = [], GenerationMixin.generate

    def watched(self, *args, **kwargs):
        generated.append(len(zero_gpu))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", watched)
    with served(seconds=7) as (address, _):
        visitor = client(address)
        assert visitor.predict("Hi", max_new_tokens=4, api_name="/race")["identical"] is True
        first = visitor.predict("Hello.", max_new_tokens=4, api_name="/chat")
        second = visitor.predict("Go on.", max_new_tokens=4, compare=True, api_name="/chat")
        assert second["identical"] is True
        assert not any("cache" in note for note in first["notes"] + second["notes"])  # they went with the process
        with pytest.raises(gradio_client.exceptions.AppError, match=r"^You have no quota left"):
            visitor.predict("Hi", max_new_tokens=4, api_name="/race")
    assert zero_gpu == [7] * 4
    assert generated == [1, 1, 2, 3, 3]  # none before the first call, where there is no device yet
