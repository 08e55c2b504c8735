"""The built book, served from this machine and opened in a browser that reaches nothing else."""
import functools
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

import kernels

BOOK = Path(__file__).resolve().parents[1] / "_build/html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


class PicturesMayDiffer:
    "nbval compares what cells print; a picture's last digits may change from one processor to the next."

    def pytest_collectstart(self, collector):
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += ("application/vnd.plotly.v1+json",)


def pytest_configure(config):
    config.pluginmanager.register(PicturesMayDiffer())    # as a hook of this file it would not reach nbs/ where tests/ is collected too
    if sys.platform == "linux":    # elsewhere a fork is no safe start
        kernels.use()


def pytest_collection_modifyitems(items):
    for item in items:
        if "site" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")    # the book in a browser


@pytest.fixture
def poisoned(monkeypatch):
    "Tensors that are made without values are NaN, so that an output that nobody wrote cannot pass."
    import torch
    from torch.utils._device import _device_constructors

    def full(make):
        def filled(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() and not made.is_meta else made
        return filled

    _device_constructors()    # PyTorch notes these functions once, and must not note ours
    for home, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(home, name, full(getattr(home, name)))
    assert torch.empty(3).isnan().all()


def chromium():
    "Path of a Chromium; the test is skipped where there is none."
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    return found or pytest.skip("no Chromium on PATH (Debian: apt-get install chromium), and CHROMIUM does not name one")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=3600")    # scripts are asked for once per browser, and compiled once
        super().end_headers()


@pytest.fixture(scope="session")
def site():
    "Address of the built book, with a slash at its end."
    chromium()
    if not (BOOK / ".complete").exists():
        pytest.skip("the book is not built, or its last build failed: make book")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BOOK))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")    # not session: its event loop would be in the way of tests that run one of their own
def context():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser.new_context()
        browser.close()


def watched(page):
    "A new page whose troubles and responses are kept."
    trouble = lambda what: page.troubles.append(what)
    page.on("console", lambda m: trouble(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: trouble(f"page error: {e}"))
    page.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else trouble(f"request failed: {r.url}"))    # left before it came
    page.on("response", lambda r: trouble(f"status {r.status}: {r.url}") if r.status >= 400 else page.responses.append(r))
    return page


def emptied(page):
    "Whether the page is as if nobody had used it."
    try:
        page.unroute_all()
        page.evaluate("() => { try { localStorage.clear(); sessionStorage.clear() } catch { } }")    # none on about:blank
        page.mouse.move(0, 0)
        return page.goto("about:blank") is None
    except Exception:    # it crashed
        return False


@pytest.fixture
def page(context):
    """A page cut off from the network. Whatever goes wrong in it is kept in `page.troubles` and fails the test at its
    end; a test that provokes something looks at it and clears the list. The tests of a module have it one after the
    other, emptied: a new one would load and compile every script again."""
    page = context.pages[0] if context.pages else watched(context.new_page())
    page.troubles, page.responses = troubles, _ = [], []
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(media="null", color_scheme="light", reduced_motion="no-preference")
    yield page
    if not emptied(page):
        page.close()
    assert not troubles


def opened(page, address, css):
    "The first `css` of the page at an address, as soon as it is there: the rest may still load."
    page.goto(address, wait_until="domcontentloaded")
    root = page.locator(css).first
    root.wait_for(timeout=20_000)
    return root
