"""JavaScript of the page, run by its events: scrolling on phones, and the replay of both runs on one clock."""

STARTED = """() => {
    window.eagle3Replay = null;
    const board = document.querySelector("#board"), top = board.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) board.scrollIntoView();
}"""  # on a phone the answer is below the controls; not smoothly, which updates of the page would interrupt
REPLAY = """() => {
    const replay = window.eagle3Replay = {};
    const start = tries => {
        const box = document.querySelector("#texts .texts");
        const tokens = [...(box?.querySelectorAll("[data-at]") ?? [])].map(token => [token, Number(token.dataset.at)]);
        if (!tokens.length && tries) return setTimeout(start, 100, tries - 1);  // the page is still being built
        const clocks = [...(box?.querySelectorAll("[data-seconds]") ?? [])].map(c => [c, Number(c.dataset.seconds)]);
        const last = Math.max(0, ...tokens.map(([_, at]) => at), ...clocks.map(([_, end]) => end));
        const began = performance.now();
        const frame = () => {
            if (window.eagle3Replay !== replay || !box?.isConnected) return;  // another run or replay has begun
            const now = (performance.now() - began) / 1000;
            for (const [token, at] of tokens) token.classList.toggle("pending", at > now);
            for (const [clock, end] of clocks) {
                clock.textContent = Math.min(now, end).toFixed(2) + " s";
                clock.classList.toggle("done", now >= end);
            }
            if (now < last) requestAnimationFrame(frame);
        };
        frame();
    };
    start(50);
}"""
UNASKED = 'matchMedia("(prefers-reduced-motion: reduce)").matches'
OPENED = f"() => {{ if (!{UNASKED}) ({REPLAY})(); }}"
ENDED = f"""() => setTimeout(() => {{
    const notice = document.querySelector("#message .notice"), box = notice?.getBoundingClientRect();
    if (notice && (box.top < 0 || box.bottom > innerHeight)) notice.scrollIntoView({{block: "center"}});
    const identical = document.querySelector("#board .badge")?.dataset.identical;
    if (!notice && identical && identical !== "unknown" && !{UNASKED}) ({REPLAY})();
}}, 150)"""  # after the page has shown the last update
