# SPDX-License-Identifier: Apache-2.0
"""The page at ``/``: by its text, and in a browser where there is one."""

from __future__ import annotations

import os
import re
import shutil
import threading

import pytest
import torch

HOSTILE = "<img src=x onerror=\"document.title='injected'\">"


def test_the_page_loads_nothing_from_elsewhere_and_is_allowed_nothing_else(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert len(re.findall("'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    assert not re.search(r"(?i)\b(src|href)=|https?:|@import|url\(", answer.text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=", answer.text)


@pytest.fixture
def browser():
    """Headless Chromium: one on the path, or the one that SRR_FAST_CHROMIUM names."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [os.environ.get("SRR_FAST_CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip("no chromium: not on the path, and SRR_FAST_CHROMIUM is not set")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.filterwarnings("ignore")
def test_the_page_in_a_browser(serve, browser, monkeypatch):
    from srr_fast.serve.engine import _Finished

    engine, _, address = serve(token="secret")
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    page.goto(address)
    assert "tiny" in page.text_content("h1")
    page.fill("#prompt", "w30 w31")
    page.fill("#best_of", "5")
    page.fill("#max_tokens", "4")
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert "bearer token" in page.text_content("#status") and page.is_hidden("#result")

    # Candidates come in one by one: the last one is held back until the page has shown the others.
    decode, gate, finished = engine.tokenizer.decode, threading.Event(), []

    def hostile(ids, **options):
        return f"{HOSTILE} {decode(ids, **options)}"

    def held(self, input_ids, scores, **options):
        finished.append(len(self.told))
        if len(finished) == 3:
            assert gate.wait(60)
        row = torch.zeros(len(input_ids), dtype=torch.bool)
        row[: len(finished)] = True  # a candidate ends with every token, the last two with the last token
        self.others = [lambda *_, **__: row]
        return told(self, input_ids, scores, **options)

    told = _Finished.__call__
    monkeypatch.setattr(engine.tokenizer, "decode", hostile)
    monkeypatch.setattr(_Finished, "__call__", held)
    page.fill("#token", "secret")
    page.click("#go")
    try:
        page.wait_for_selector("#candidates li:nth-child(2)")
        assert len(page.query_selector_all("#candidates li")) == 2
        assert "2 of 5 candidates" in page.text_content("#status")
        assert "as they are finished" in page.text_content("#order")
        assert page.is_hidden("#answer") and page.is_hidden("#costs") and page.query_selector("meter") is None
        assert HOSTILE in page.text_content("#candidate1")
    finally:
        gate.set()
    page.wait_for_selector("#answer", state="visible")
    items = page.query_selector_all("#candidates li")
    assert len(items) == 5 and len(page.query_selector_all("#candidates li.chosen")) == 1
    assert items[0].get_attribute("class") == "chosen" and "best first" in page.text_content("#order")
    bars = [float(bar.get_attribute("value")) for bar in page.query_selector_all("#candidates meter")]
    assert bars == sorted(bars, reverse=True) and -1 <= bars[-1] < bars[0] <= 1
    assert page.text_content("#answer").startswith(HOSTILE) and HOSTILE in items[1].text_content()
    assert page.query_selector("img") is None and page.title() == "srr_fast"
    costs = page.text_content("#stages")
    assert all(stage in costs for stage in ("waiting", "sampling", "pooling", "ranking")) and "NaN" not in costs
    monkeypatch.setattr(_Finished, "__call__", told)

    page.fill("#min_safety", "1")
    page.click("#go")
    page.wait_for_selector("#answer.none", state="visible")
    assert "below min_safety" in page.text_content("#answer")
    assert len(page.query_selector_all("#candidates li.chosen")) == 0

    def broken(self, *_, **__):
        self.items[0].heard(0, 1, "a candidate")
        raise RuntimeError("a secret")

    monkeypatch.setattr(_Finished, "__call__", broken)
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert "its log says why" in page.text_content("#status") and page.is_hidden("#answer")
    assert faults == []
