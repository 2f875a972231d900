"""What the Space shows, without a browser: figures of a run, coloured tokens, trees, plots, what "auto" chose.

Drawn example, one cycle: the root "a" has children "b" (0.5) and "c" (0.25); below "b" are "d" (0.5 given "b") and "e"
(0.25). Accepted is b, d; the target's own token is "f".
"""

import json
import math
import re
from dataclasses import replace
from html import escape
from xml.etree import ElementTree

import choices
import plots
import pytest
import race
import tree_view
from answers import answers_html, chat_html, looks_like_code
from progress import Progress, depths_of
from recorded import FILE, Recorded, recorded_board, stored
from scoreboard import badge, message, scoreboard
from service import BRANCHED, interesting_cycle, tree_of, view_of
from tokens import ColouredText, PlainText

from hf_eagle3 import CycleRecord
from hf_eagle3.generation.tree.policy import Choice
from hf_eagle3.token_ids import IncrementalDecoder


LETTERS = ["<s>", "a", "b", "c", "d", "e", "f"]
CYCLE = CycleRecord(
    row=0,
    cycle=0,
    tokens=[2, 4, 6],
    num_accepted_tokens=2,
    tree_tokens=[1, 2, 3, 4, 5],
    tree_parents=[-1, 0, 0, 1, 1],
    tree_scores=[0.0, math.log(0.5), math.log(0.25), math.log(0.25), math.log(0.125)],
    accepted_nodes=[1, 3],
    seconds=0.5,
)


class Letters:
    """Decodes ids to `LETTERS`."""

    def decode(self, token_ids, skip_special_tokens):
        return "".join(LETTERS[i] for i in token_ids if i or not skip_special_tokens)


class Bytes:
    """Decodes ids as bytes, as byte-level tokenizers do."""

    def decode(self, token_ids, skip_special_tokens):
        return bytes(token_ids).decode("utf-8", errors="replace")


# -- figures ----------------------------------------------------------------------------------------------------------


def finished(plain: list[int], ours: list[int]) -> Progress:
    progress = Progress()
    progress.add(race.Finished(race.PLAIN, plain, 2.0))
    progress.add(race.Finished(race.SPECULATIVE, ours, 0.5))
    return progress


def test_identity_is_that_of_token_ids():
    same, other = finished([1, 2, 3], [1, 2, 3]), finished([1, 2, 3], [1, 9, 3])
    assert same.identical is True
    assert 'data-identical="yes"' in badge(same)
    assert "3 of 3 token ids" in badge(same)
    assert other.identical is False
    assert other.first_difference == 1
    assert 'data-identical="no"' in badge(other)
    assert "outputs differ from token 2 " in badge(other)
    assert finished([1, 2], [1, 2, 3]).first_difference == 2
    assert same.speedup == pytest.approx(4)
    assert finished([1] * 4, [1] * 2).speedup == pytest.approx((2 / 4) / (0.5 / 2))
    assert "4.00×" in scoreboard(same)


def test_nothing_is_claimed_before_both_are_through():
    progress = Progress()
    progress.add(race.Finished(race.PLAIN, [2, 4, 6], 2.0))
    progress.add(CYCLE)
    assert (progress.identical, progress.speedup) == (None, None)
    assert 'data-identical="unknown"' in badge(progress)
    assert progress.figures(race.SPECULATIVE).rate == pytest.approx(3 / 0.5)
    assert progress.acceptance_length == 3.0
    assert "—" in scoreboard(progress)
    progress.is_stopped = True
    assert "stopped" in badge(progress)


# -- HTML -------------------------------------------------------------------------------------------------------------


def test_tokens_are_coloured_by_origin_and_explained():
    text = ColouredText(Letters())
    text.add(CYCLE)
    text.add_probabilities([0.9, 0.004, 0.25])
    assert re.findall(
        r'class="(\w+)".* data-hint="(.*)">(.*)</span>', text.html().replace("</span>", "</span>\n")
    ) == [
        ("d1", "accepted draft token, depth 1 | cycle 1 | draft: 50% | target: 90%", "b"),
        ("d2", "accepted draft token, depth 2 | cycle 1 | draft: 50% | target: &lt;1%", "d"),
        ("own", "the target&#x27;s own token | cycle 1 | target: 25%", "f"),
    ]


def test_characters_of_several_tokens_appear_once_they_are_whole():
    pieces, plain = IncrementalDecoder(Bytes()), PlainText(Bytes())
    bytes_ = list("aé€b".encode())
    assert [pieces.add(byte) for byte in bytes_] == ["a", "", "é", "", "", "€", "b"]
    for byte in bytes_:
        plain.add(byte)
    assert plain.text == "aé€b"


def test_whatever_was_written_is_escaped():
    evil = '<img src=x onerror="alert(1)">&'
    plain = PlainText(Bytes())
    for byte in evil.encode():
        plain.add(byte)
    shown = [plain.html(), chat_html([{"role": "user", "content": evil}]), message(evil)]
    coloured = ColouredText(Bytes())
    coloured.add(CycleRecord(0, -1, list(evil.encode()), 0, [0], [-1], [0.0], [], 0.1))
    tree = CycleRecord(0, 0, [38, 60], 1, [60, 38], [-1, 0], [0.0, -0.1], [1], 0.2)
    for html in (*shown, coloured.html(), tree_view.tree_svg(tree, Bytes())):
        assert "<img" not in html
        assert "&lt;" in html
        ElementTree.fromstring(f"<div>{html}</div>")  # well-formed: nothing broke out
    assert "Plain generate" not in answers_html("a", "b", compare=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here it is:\n```python\nx\n```", True),
        ("def add(a, b):\n    return a + b", True),
        ("#include <iostream>", True),
        ("    for (let i = 0; i < n; i++) {", True),
        ("import csv", True),
        ("For each of the 12 tickets, return 3 dollars. If it rains:\nwhile we wait, import taxes fall.", False),
        ("Maya sold 48 + 48 = 128 toys.\n#### 21", False),
    ],
)
def test_code_is_recognised(text, expected):
    assert looks_like_code(text) is expected
    assert ("turn user code" in chat_html([{"role": "user", "content": text}])) is expected


def test_texts_have_the_times_of_their_tokens():
    plain, ours = PlainText(Letters()), ColouredText(Letters())
    plain.add(2, 0.25)
    ours.add(CYCLE)
    html = ElementTree.fromstring(answers_html(ours.html(), plain.html(), True, True, {"plain": 2.0, "ours": 0.5}))
    assert [span.get("data-at") for span in html.iter("span") if span.get("data-at")] == ["0.250"] + ["0.500"] * 3
    assert [clock.get("data-seconds") for clock in html.iter("small")] == ["2.000", "0.500"]
    assert [div.get("class") for div in html.iter("div") if div.get("data-way")] == ["answer code"] * 2
    running = answers_html("", "a", True, seconds={"plain": 2.0})
    assert running.count("data-seconds") == 1


def test_a_tree_is_laid_out_with_the_accepted_path_on_top():
    #          0
    #      1       2      path 0 2 4; node 5 is the target's own, behind 4
    #      3       4
    #              5
    depths, rows = tree_view.placed([-1, 0, 0, 1, 2, 4], first=[0, 2, 4, 5])
    assert depths == [0, 1, 1, 2, 2, 3]
    assert rows == [0, 1, 0, 1, 0, 0]


def test_a_tree_shows_probabilities_path_and_rejected_nodes():
    root = ElementTree.fromstring(tree_view.tree_svg(CYCLE, Letters()))
    shown = [(g.get("class"), [t.text for t in g.findall("text")]) for g in root.findall("g")]
    assert shown == [
        ("node accepted", ["a"]),
        ("node accepted", ["b", "50%"]),
        ("node rejected", ["c", "25%"]),
        ("node accepted", ["d", "50%"]),
        ("node rejected", ["e", "25%"]),
        ("node own", ["f"]),
    ]
    assert [path.get("class") for path in root.findall("path")] == [
        "edge accepted", "edge rejected", "edge accepted", "edge rejected", "edge own",
    ]  # fmt: skip
    assert "4 drafted, 2 accepted, 3 committed" in tree_view.tree_html(CYCLE, Letters(), 9)
    bare = CycleRecord(0, 3, [2], 0, [1], [-1], [0.0], [], 0.9)
    assert "nothing was drafted" in tree_view.tree_html(bare, Letters(), 9)
    assert interesting_cycle([bare, CYCLE, bare]) == 2


def test_the_tree_shown_first_branches_where_any_does():
    """A chain accepts the most; of the trees, the late ones are what "auto" settled on."""
    chain = replace(CYCLE, tree_parents=[-1, 0, 1, 2, 3], accepted_nodes=[1, 2, 3, 4], num_accepted_tokens=4)
    poor = replace(CYCLE, num_accepted_tokens=0)
    assert interesting_cycle([chain, CYCLE, chain, CYCLE, poor, chain]) == 4
    assert interesting_cycle([CYCLE, *[poor] * BRANCHED]) == 1 + BRANCHED
    assert interesting_cycle([poor, chain]) == 1
    assert interesting_cycle([replace(chain, num_accepted_tokens=1), chain]) == 2  # nothing but chains


def test_plots_draw_what_happened():
    assert [plots.tick_step(most, 4) for most in (1, 4, 9, 30, 81, 450)] == [1, 1, 5, 10, 50, 200]
    progress = finished([2, 4, 6], [2, 4, 6])
    phases = {"prefill": 1.0, "verify_forward": 3.0}
    progress.add(race.Finished(race.SPECULATIVE, [2, 4, 6], 0.5, phase_seconds=phases))
    progress.add(CYCLE)
    figures = ElementTree.fromstring(plots.plots(progress)).findall("figure")
    assert [figure.get("data-plot") for figure in figures] == ["speed", "accepted", "histogram", "phases"]
    bars = [[r.get("class") for r in figure.iter("rect") if "bar" in r.get("class")] for figure in figures[1:3]]
    assert bars == [["bar levels", "bar accepted"], ["bar accepted"] * 3]  # one cycle; 0, 1 and 2 accepted tokens
    assert "2 of 4 draft tokens in 1 cycles" in "".join(figures[2].itertext())
    heights = [float(r.get("height")) for r in figures[2].iter("rect")]
    assert heights[:2] == [0, 0]
    assert heights[2] == pytest.approx(plots.HEIGHT - plots.TOP - plots.BOTTOM)
    text = "".join(figures[3].itertext())
    assert "4.00 s" in text
    assert "runs behind" not in text
    assert "runs asynchronously" in plots.phases_plot(phases, is_asynchronous=True)
    assert "prompt 25%" in text
    assert "verification 75%" in text
    empty = ElementTree.fromstring(plots.plots(Progress())).findall("figure")
    assert [figure.get("data-plot") for figure in empty] == ["speed", "accepted", "histogram"]


def test_speed_is_drawn_over_seconds():
    """Two tokens of one pass, at 1.5 s, are one point."""
    assert plots.rates([1.0, 1.5, 1.5, 2.0]) == [(1.5, 4.0), (2.0, 3.0)]
    assert plots.rates([place / 10 for place in range(30)] + [3.1] * 20) == [
        *[(place / 10, pytest.approx(10)) for place in range(1, 30)],
        (3.1, pytest.approx(20 / 0.2)),  # a pass of more tokens than the window
    ]
    assert [plots.tick_step(most, 6, 0.0) for most in (0.3, 1.5, 12)] == pytest.approx([0.05, 0.5, 2])
    drawn = ElementTree.fromstring(plots.speed_plot([0.2, 0.4, 0.8], [0.1, 0.3]))
    ends = [line.get("points").split()[-1].split(",")[0] for line in drawn.iter("polyline")]
    across = plots.WIDTH - plots.LEFT - plots.RIGHT
    assert list(map(float, ends)) == pytest.approx([plots.LEFT + across, plots.LEFT + across * 0.3 / 0.8], abs=0.1)
    assert "seconds" in "".join(drawn.itertext())


# -- the recorded run -------------------------------------------------------------------------------------------------


def test_the_recorded_run_is_whole_and_named_as_recorded():
    recorded = Recorded()
    progress, view = recorded.progress, view_of(recorded.events, recorded)
    assert progress.identical is True
    assert FILE.stat().st_size < 40_000
    assert len(progress.probabilities) == len(progress.ids) > 20
    for cycle in progress.speculated:
        assert [cycle.tree_tokens[node] for node in cycle.accepted_nodes] == cycle.tokens[: len(cycle.accepted_nodes)]
    assert view.plain.text == view.ours.text != ""
    seconds = {way: progress.finished[way].seconds for way in (race.PLAIN, race.SPECULATIVE)}
    at = {
        box.get("data-way"): [float(span.get("data-at")) for span in box.findall("span")]
        for box in ElementTree.fromstring(view.texts).iter("div")
        if box.get("data-way")
    }
    assert at["plain"] == pytest.approx([event.seconds for event in progress.plain], abs=1e-3)
    assert at["ours"] == pytest.approx([c.seconds for c in progress.cycles for _ in c.tokens], abs=1e-3)
    assert at["plain"][-1] <= seconds[race.PLAIN]
    assert at["ours"][-1] <= seconds[race.SPECULATIVE]
    board = recorded_board(recorded)
    assert "Recorded earlier" in board
    assert escape(recorded.prompt) in board
    assert "this machine" not in board.partition("</p>")[2]
    assert "Cycle 2 of" in tree_of(progress, 2, recorded)


def test_what_is_recorded_is_read_back(tmp_path):
    events = [
        race.PlainToken(2, 0.25),
        race.Finished(race.PLAIN, [2, 4, 6], 2.0),
        CYCLE,
        race.Finished(race.SPECULATIVE, [2, 4, 6], 0.5, choices=[Choice(2, 4, 2.5)]),
        race.Probabilities([0.5, 0.25, 1.0]),
    ]
    file = tmp_path / "run.json"
    file.write_text(json.dumps(stored("a pair", "Hi", events, Letters())))
    found = Recorded(file)
    assert (found.description, found.prompt) == ("a pair", "Hi")
    assert found.events[:2] == events[:2]
    assert found.events[2].accepted_nodes == CYCLE.accepted_nodes
    assert found.events[2].tree_scores == pytest.approx(CYCLE.tree_scores, abs=1e-4)
    assert "expected 2.5 tokens" in found.progress.why(1)
    assert view_of(found.events, found).ours.text == "bdf"


# -- the tree mode "auto" ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(4, 7, 3.21, 1.4, 0.6), "3.2 tokens at the cost of 2.0 plain steps: 1.4 to verify, 0.6 to"),
        (Choice(4, 7, 3.0), "Auto expected 3.0 tokens while measuring the cost of forward passes."),
        (Choice(2, 9, 6.0), "Auto expected 3.0 tokens "),  # two levels give three at most
        (Choice(0, 0, 1.0), "plain step"),
    ],
    ids=str,
)  # fmt: skip
def test_what_auto_chose_is_told_with_its_price(choice, expected):
    assert expected in choices.why(choice)


def test_a_runs_choices_are_summed_up():
    assert choices.summary([]) == ""
    assert choices.summary([Choice(0, 0, 1.0)] * 2) == "Auto chose 2 plain steps."
    mixed = [Choice(2, 7, 2.0), Choice(4, 23, 3.0), Choice(0, 0, 1.0)]
    assert choices.summary(mixed) == "Auto chose 7 to 23 draft tokens in 2 cycles and 1 plain step."


def test_notes_say_what_else_happened():
    progress = finished([2, 4, 6], [2, 4, 6])
    assert progress.notes == []
    chosen = [Choice(2, 4, 2.5)]
    progress.add(CYCLE)
    assert progress.why(1) == ""
    progress.add(race.Finished(race.SPECULATIVE, [2, 4, 6], 0.5, 7, choices=chosen))
    assert [note.split()[0] for note in progress.notes] == ["7", "Auto"]
    assert "expected 2.5 tokens" in tree_of(progress, 1, Letters())
    assert "7 tokens of the prompt" in scoreboard(progress)
    progress.add(race.Finished(race.SPECULATIVE, [2, 4, 6], 2.5, choices=chosen))
    assert "slower than plain generate" in progress.notes[-1]
    progress.add(race.Finished(race.SPECULATIVE, [2, 4, 6], 0.5, why_plain="frequencies <change>"))
    assert "ran without speculation: frequencies &lt;change&gt;." in scoreboard(progress)


def test_levels_are_those_of_the_deepest_node():
    assert depths_of([-1, 0, 0, 1, 3]) == [0, 1, 1, 2, 3]
    progress = Progress()
    progress.add(CycleRecord(0, -1, [1], 0, [1], [-1], [0.0], [], 0.1))
    progress.add(CYCLE)
    assert (progress.levels, progress.drafted_levels) == ([0, 2], [2])
