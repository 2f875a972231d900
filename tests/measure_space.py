"""
What the Space's page costs the generation it shows, and how soon its first token is there. Prints one JSON line.

    python tests/measure_space.py [RACES]

Races of the same prompt alternate between pages with and without plots, so that a slow moment hits both; a headless
Chromium on the same machine looks on. `cost` is the median ratio of a pair's generation seconds, less 1, and
`cpu_cost` the same of the server's CPU seconds over the whole race, which other processes do not disturb.
`drawing_share` is the CPU time spent in drawing plots over that of the whole race.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median


sys.path.insert(0, str(Path(__file__).parents[1] / "spaces" / "eagle3_demo"))

import service
from pair import leave_a_core
from playwright.sync_api import sync_playwright
from race import Finished
from space_page import served


class Plots:
    """Stands in for `plots.plots`: counts what it costs, or draws nothing."""

    def __init__(self, draw):
        self.draw, self.is_on, self.seconds, self.count = draw, True, 0.0, 0

    def __call__(self, progress) -> str:
        if not self.is_on:
            return ""
        began = time.thread_time()
        html = self.draw(progress)
        self.seconds += time.thread_time() - began
        self.count += 1
        return html


def run_race(page, plots: Plots, is_on: bool, done: list) -> dict:
    """One race on an open page."""
    plots.is_on, plots.seconds, plots.count = is_on, 0.0, 0
    done.clear()
    cpu, began = time.process_time(), time.perf_counter()
    page.locator("#run").click()
    page.locator("#stop:not([disabled])").wait_for()
    page.wait_for_function("document.querySelector('.answer[data-way=plain]').textContent.length > 0")
    first = time.perf_counter() - began
    page.locator("#stop[disabled]").wait_for()
    return {
        "first_token_seconds": first,
        "generation_seconds": sum(event.seconds for event in done),
        "cpu_seconds": time.process_time() - cpu,
        "drawing_seconds": plots.seconds,
        "updates": plots.count,
    }


def main(races: int) -> None:
    plots, done = Plots(service.plots), []
    service.plots = plots
    add = service.View.add

    def watched(self, event):
        if isinstance(event, Finished):
            done.append(event)
        add(self, event)

    service.View.add = watched
    pairs = []
    leave_a_core()
    with served() as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("#preset-code").click()
        run_race(page, plots, True, done)
        for number in range(races):
            order = (True, False) if number % 2 else (False, True)
            found = {is_on: run_race(page, plots, is_on, done) for is_on in order}
            pairs.append((found[True], found[False]))
        browser.close()
    on, off = zip(*pairs, strict=True)
    report = {
        "races": races,
        "cost": median(a["generation_seconds"] / b["generation_seconds"] for a, b in pairs) - 1,
        "cpu_cost": median(a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs) - 1,
        "drawing_share": median(a["drawing_seconds"] / a["cpu_seconds"] for a in on),
        "milliseconds_per_drawing": median(1000 * a["drawing_seconds"] / a["updates"] for a in on),
        "first_token_seconds": {"median": median(a["first_token_seconds"] for a in (*on, *off))},
        "generation_seconds": median(a["generation_seconds"] for a in off),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
