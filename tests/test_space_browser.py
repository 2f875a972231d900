"""The Space in a headless Chromium: a race with its badge, plots and tree; stopping, mistakes, chat, two visitors;
phone and wide, light and dark; nothing sticks out, the console stays silent, nothing is fetched from elsewhere."""

import shutil
import time

import pytest
import race
import torch
from conversation import prompt_ids
from space_page import served

from hf_eagle3 import embedded


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium"),
]
pytest.importorskip("gradio", reason="needs the extra `space`: pip install 'hf-eagle3[space]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = sync_api.expect

PATIENCE = 60_000  # ms, for a loaded machine
IDENTICAL = "#board:not(:has(.recorded)) [data-identical=yes]"
HAS_TEXT = """least => !document.querySelector('#board .recorded')
    && document.querySelector('.answer[data-way=plain]').textContent.length > least"""
SCREENS = {
    "wide-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "tablet-dark": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "dark"},
    "desk-light": {"viewport": {"width": 1400, "height": 900}, "color_scheme": "light"},
    "desk-dark": {"viewport": {"width": 1920, "height": 1080}, "color_scheme": "dark"},
    "phone-dark": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "has_touch": True,
        "is_mobile": True,
    },
    "small-phone-light": {"viewport": {"width": 320, "height": 640}, "color_scheme": "light"},
}
# What is wider than the page, but for what scrolls in a box of its own.
STICKS_OUT = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > innerWidth + 1 && !e.closest('.tree') && !e.closest('.answer');
}).map(e => e.tagName + '.' + e.className)"""
# Contrast ratio of each text with what is behind it (WCAG 2), semi-transparent colours blended.
CONTRASTS = """selectors => {
    const parse = c => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
    const light = c => { const [r, g, b] = c.map(v => v / 255).map(
        v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const back = e => getComputedStyle(e).backgroundColor;
    const behind = e => !e ? [255, 255, 255] : over(parse(back(e)), behind(e.parentElement));
    return Object.fromEntries(selectors.map(s => {
        const e = document.querySelector(s), style = getComputedStyle(e), paper = behind(e);
        const ink = over(parse(e instanceof SVGElement ? style.fill : style.color), paper);
        const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
        return [s, (a + 0.05) / (b + 0.05)];
    }));
}"""
# Resolved when the page has not scrolled for 20 frames.
AT_REST = """() => new Promise(done => {
    let before = NaN, frames = 0;
    const look = () => {
        frames = scrollY === before ? frames + 1 : 0;
        before = scrollY;
        frames < 20 ? requestAnimationFrame(look) : done();
    };
    look();
})"""
# Times at which each text was complete, and tokens that the other one lacked then.
REPLAY_WATCH = """() => {
    window.seen = {};
    const left = way => document.querySelectorAll(`.answer[data-way=${way}] .pending`).length, had = {};
    const look = () => {
        for (const [way, other] of [["ours", "plain"], ["plain", "ours"]]) {
            if (left(way)) had[way] = true;
            else if (had[way] && !seen[way]) seen[way] = {at: performance.now(), left: left(other)};
        }
        if (!seen.plain || !seen.ours) requestAnimationFrame(look);
    };
    look();
}"""
READ = [
    "#board .cell strong", "#board .cell small", "#board .badge", "#texts .answer[data-way=ours] span",
    "#texts .answer[data-way=plain]", "#texts .legend", "#texts .legend .d8", "#plots figcaption b", "#plots svg text",
    "#tree .caption", "#tree .node.accepted text", "#tree .node.rejected text", "#tree .note",
]  # fmt: skip


@pytest.fixture(scope="module")
def address():
    with served(new_tokens=256) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        in_containers = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=in_containers)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor; at the end nothing may have complained."""
    contexts, complaints = [], []

    def opened(screen: str = "wide-light"):
        context = browser.new_context(**SCREENS[screen])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: complaints.append(f"{m.type}: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else complaints.append(r.url)
        )
        page.goto(address)
        page.locator("#run").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def ask(page, prompt: str | None = None) -> None:
    if prompt is not None:
        page.locator("#prompt textarea").fill(prompt)
    page.locator("#run").click()


def wait_until_done(page) -> None:
    page.locator("#stop[disabled]").wait_for()
    page.locator("#run:not([disabled])").wait_for()


def set_new_tokens(page, number: int) -> None:
    """Typed again until it is taken: what is typed while the accordion still opens is lost."""
    page.get_by_role("button", name="Sampling and length").click()
    box, slider = (page.get_by_label(f"{kind} Max new tokens") for kind in ("number input for", "range slider for"))
    slider.wait_for()
    deadline = time.monotonic() + PATIENCE / 1000
    while slider.input_value() != str(number):
        if time.monotonic() > deadline:
            pytest.fail(f"The page does not take {number} new tokens.")
        box.fill(str(number))
        box.press("Tab")
        page.wait_for_timeout(300)  # the page hands values on a moment after it shows them


@pytest.mark.parametrize("screen", ["wide-light", "phone-dark", "small-phone-light"])
def test_a_race_is_shown_and_reads_well(visit, screen):
    page = visit(screen)
    assert page.evaluate(STICKS_OUT) == []
    ask(page)
    page.locator(IDENTICAL).wait_for()
    page.wait_for_function("document.querySelector('#board .badge').getBoundingClientRect().bottom <= innerHeight")
    wait_until_done(page)
    texts = {way: page.locator(f".answer[data-way={way}]").text_content() for way in ("plain", "ours")}
    assert texts["plain"] == texts["ours"] != ""
    hints = page.locator(".answer[data-way=ours] span").evaluate_all("all => all.map(s => s.dataset.hint)")
    assert sum("draft: " in hint for hint in hints) == sum("accepted draft token" in hint for hint in hints) > 0
    assert all("target: " in hint for hint in hints)
    token = page.locator(".answer[data-way=ours] span:has-text('a')").first
    page.evaluate(AT_REST)  # it scrolls to the board of a finished run; a tap meanwhile finds another token
    token.tap() if SCREENS[screen].get("has_touch") else token.hover()
    is_shown = "e => getComputedStyle(e, '::after').content === JSON.stringify(e.dataset.hint)"
    page.wait_for_function(is_shown, arg=token.element_handle())
    drawn = page.locator("#plots figure").evaluate_all(
        "all => all.map(f => [f.dataset.plot, f.querySelectorAll('.bar, polyline, [class^=phase]').length > 0,"
        " f.getBoundingClientRect().width > 150])"
    )
    assert drawn == [[name, True, True] for name in ("speed", "accepted", "histogram", "phases")]
    assert page.locator("#tree .node.accepted").count() > 1
    assert page.locator("#tree .node.rejected").count() > 0
    assert page.evaluate(STICKS_OUT) == []
    width = SCREENS[screen]["viewport"]["width"]  # a phone would widen the page to what sticks out
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    contrasts = page.evaluate(CONTRASTS, READ)
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == screen.endswith("dark")


@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_opens_centred_with_a_recorded_run(visit, screen):
    page = visit(screen)
    width = SCREENS[screen]["viewport"]["width"]
    expect(page.locator("#board .recorded")).to_contain_text("Recorded earlier")
    expect(page.get_by_text("keeps the longest path")).to_be_hidden()
    page.get_by_role("button", name="How it works").click()
    expect(page.get_by_text("keeps the longest path")).to_be_visible()
    box = page.locator("#tree").bounding_box()
    assert box["x"] == pytest.approx(width - box["x"] - box["width"], abs=20)  # a scroll bar may take a few px
    assert box["width"] > min(width, 1320) - 120
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert page.evaluate(STICKS_OUT) == []
    assert page.evaluate(CONTRASTS, ["#board .recorded"])["#board .recorded"] >= 4.5
    assert "monospace" in page.locator(".answer[data-way=ours]").evaluate("e => getComputedStyle(e).fontFamily")
    nodes = page.locator("#tree .node").count()
    page.get_by_label("number input for Draft tree of cycle").fill("1")
    page.get_by_label("number input for Draft tree of cycle").press("Tab")
    expect(page.locator("#tree .caption")).to_contain_text("Cycle 1 of")
    assert page.locator("#tree .node").count() != nodes


def test_the_replay_runs_both_on_one_clock(visit):
    """Recorded: 1.54 s plainly, 0.65 s with the draft."""
    page = visit()
    waiting = "way => document.querySelectorAll(`.answer[data-way=${way}] .pending`).length"
    page.wait_for_function("!document.querySelector('.answer .pending')")
    page.evaluate(REPLAY_WATCH)
    page.locator("#replay").click()
    page.wait_for_function(f"({waiting})('plain') > 0 && ({waiting})('ours') > 0")
    page.wait_for_function("window.seen.ours && window.seen.plain")
    seen = page.evaluate("window.seen")
    ends = page.locator("#texts [data-seconds]").evaluate_all("all => all.map(e => Number(e.dataset.seconds))")
    assert page.locator("#texts .clock.done").all_text_contents() == [f"{end:.2f} s" for end in ends]
    assert seen["ours"]["left"] > 0  # plain generate was still writing
    difference = (seen["plain"]["at"] - seen["ours"]["at"]) / 1000
    assert difference == pytest.approx(ends[0] - ends[1], abs=0.4)
    assert page.locator(".answer .pending").count() == 0
    page.evaluate(REPLAY_WATCH)
    ask(page)
    page.locator(IDENTICAL).wait_for()
    page.wait_for_function("window.seen.ours && window.seen.plain")  # by itself, after a race


def test_the_page_of_a_phone_scrolls_to_the_text_and_to_the_error(visit):
    page = visit("phone-dark")
    is_seen = """selector => { const box = document.querySelector(selector).getBoundingClientRect();
        return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight; }"""
    assert not page.evaluate(is_seen, ".answer[data-way=plain]")
    ask(page)
    page.wait_for_function(is_seen, arg=".answer[data-way=plain]")
    page.locator(IDENTICAL).wait_for()
    wait_until_done(page)
    ask(page, "   ")
    page.locator("#message .notice").wait_for()
    page.wait_for_function(is_seen, arg="#message .notice")


def test_a_button_that_does_nothing_looks_so(visit, monkeypatch):
    check = race._Race.check
    monkeypatch.setattr(race._Race, "check", lambda self: (time.sleep(0.05), check(self)))
    page = visit()
    look = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.borderTopStyle, s.cursor]; }"
    idle = page.locator("#stop").evaluate(look)
    assert idle == ["rgba(0, 0, 0, 0)", "dashed", "not-allowed"]
    ask(page)
    page.locator("#stop:not([disabled])").wait_for()
    expect(page.locator("#stop")).not_to_have_css("background-color", idle[0])
    expect(page.locator("#run")).to_have_css("border-top-style", "dashed")
    page.locator("#stop").click()
    wait_until_done(page)


def test_the_slider_shows_another_cycles_tree(visit):
    page = visit()
    set_new_tokens(page, 16)
    ask(page)
    page.locator(IDENTICAL).wait_for()
    wait_until_done(page)
    for number in (2, 1):
        box = page.get_by_label("number input for Draft tree of cycle")
        box.fill(str(number))
        box.press("Tab")
        expect(page.locator("#tree .caption")).to_contain_text(f"Cycle {number} of")


def test_stop_stops_and_keeps_the_text(visit, monkeypatch):
    check = race._Race.check
    monkeypatch.setattr(race._Race, "check", lambda self: (time.sleep(0.05), check(self)))
    page = visit()
    set_new_tokens(page, 32)
    ask(page)
    page.locator("#stop:not([disabled])").wait_for()
    page.wait_for_function(HAS_TEXT, arg=3)
    page.locator("#stop").click()
    expect(page.get_by_role("alert")).to_contain_text("Stopped", timeout=PATIENCE)
    wait_until_done(page)
    text = page.locator(".answer[data-way=plain]").text_content()
    assert len(text) > 3
    expect(page.locator("#board .badge")).to_contain_text("stopped")
    monkeypatch.undo()
    ask(page)
    page.locator(IDENTICAL).wait_for()
    assert page.locator(".answer[data-way=plain]").text_content().startswith(text)
    assert page.get_by_role("alert").count() == 0


def test_leaving_the_page_ends_its_run(visit, monkeypatch):
    check, steps = race._Race.check, []
    monkeypatch.setattr(race._Race, "check", lambda self: (steps.append(1), time.sleep(0.1), check(self)))
    page = visit()
    set_new_tokens(page, 256)
    ask(page, "Tell me a long story.")
    page.wait_for_function(HAS_TEXT, arg=3)
    page.close()
    with race.device_lock:  # as soon as the run is over
        assert len(steps) < 200


def test_mistakes_are_messages(visit):
    page = visit()
    ask(page, "   ")
    expect(page.get_by_role("alert")).to_contain_text("prompt is empty", timeout=PATIENCE)
    assert 0 <= gap(page, "#run", "#message .notice") < 40  # below the button, not above it
    set_new_tokens(page, 200)
    ask(page, "7 9 " * 900)
    expect(page.locator("#message .notice")).to_contain_text("the target's context allows 824", timeout=PATIENCE)
    page.locator("#preset-code").click()
    expect(page.locator("#prompt textarea")).to_have_value(embedded.prompts("code")[0]["prompt"])
    page.get_by_role("button", name="Another pair").click()
    page.get_by_label("Target").fill("/nowhere/at/all")
    page.locator("#load").click()
    expect(page.locator("#load-message .notice")).to_contain_text(
        "A target is given without a draft", timeout=PATIENCE
    )
    assert 0 <= gap(page, "#load", "#load-message .notice") < 40
    for name in ("smollm2", "embedded"):
        assert page.locator(f"#shipped input[value={name}]").count() == 1


def gap(page, above: str, below: str) -> float:
    """px between two elements, one below the other."""
    top, bottom = page.locator(above).bounding_box(), page.locator(below).bounding_box()
    return bottom["y"] - top["y"] - top["height"]


def test_chat_goes_on_and_shows_text_as_text(visit):
    page = visit()
    page.get_by_label("Chat").check()
    set_new_tokens(page, 12)
    evil = "<img src=x onerror='document.title=1'> <b>Hello</b>"
    expect(page.locator("#run")).to_have_text("Send")
    for number, prompt in enumerate((evil, "Go on."), start=1):
        page.locator("#prompt textarea").fill(prompt)
        page.locator("#prompt textarea").press("Enter")
        expect(page.locator("#chat .turn.assistant")).to_have_count(number, timeout=PATIENCE)
        wait_until_done(page)
        assert page.locator(IDENTICAL).count() == 1
    assert page.locator("#chat .turn.user").last.text_content() == evil  # the newest comes first
    assert page.locator("#chat img, #chat b").count() == 0
    expect(page.locator("#prompt textarea")).to_have_value("")
    page.locator("#new-chat").click()
    expect(page.locator("#chat .turn")).to_have_count(0)
    page.get_by_label("Single prompt").check()
    expect(page.locator("#run")).to_have_text("Run")
    page.locator("#prompt textarea").fill("one")
    page.locator("#prompt textarea").press("Enter")
    expect(page.locator("#prompt textarea")).to_have_value("one\n")


def test_two_visitors_at_once_see_their_own(visit, monkeypatch):
    target, _, tokenizer = embedded.load_pair()
    prompts = [row["prompt"] for row in embedded.prompts("math")[:2]]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        out = target.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(out, skip_special_tokens=True))
    assert expected[0] != expected[1]
    pages = [visit(), visit("phone-dark")]
    for page in pages:
        set_new_tokens(page, 16)
    check = race._Race.check
    monkeypatch.setattr(race._Race, "check", lambda self: (time.sleep(0.05), check(self)))
    for page, prompt in zip(pages, prompts, strict=True):
        ask(page, prompt)
    waiting = pages[1].locator("#board .progress-text:has-text('queue')")
    waiting.wait_for()
    assert waiting.evaluate("e => e.checkVisibility() && e.parentElement.clientHeight > 0")
    for page, text in zip(pages, expected, strict=True):
        page.locator(IDENTICAL).wait_for()
        assert page.locator(".answer[data-way=ours]").text_content() == text


@pytest.mark.nightly
def test_the_first_token_comes_within_two_seconds(visit):
    """The best of three, since nightly machines are shared."""
    page, found = visit(), []
    for _ in range(3):
        began = time.perf_counter()
        ask(page)
        page.locator("#stop:not([disabled])").wait_for()
        page.wait_for_function(HAS_TEXT, arg=0)
        found.append(time.perf_counter() - began)
        wait_until_done(page)
    assert min(found) < 2
