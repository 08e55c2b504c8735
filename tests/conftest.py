"""The built book, served from this machine and opened in a browser that reaches nothing else."""
import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[1] / "_build/html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


class PicturesMayDiffer:
    "nbval compares what cells print; a picture's last digits may change from one processor to the next."

    def pytest_collectstart(self, collector):
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += ("application/vnd.plotly.v1+json",)


def pytest_configure(config):
    config.pluginmanager.register(PicturesMayDiffer())    # as a hook of this file it would not reach nbs/


def pytest_collection_modifyitems(items):
    for item in items:
        if "site" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")    # the book in a browser


@pytest.fixture
def poisoned(monkeypatch):
    "Tensors that are made without values are NaN, so that an output that nobody wrote cannot pass."
    import torch

    def full(make):
        def filled(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() and not made.is_meta else made
        return filled

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


@pytest.fixture(scope="module")    # not session: its event loop would be in the way of nbval's kernels in the same worker
def context():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        context = browser.new_context()
        context.route(re.compile(r"^\w+://(?!127\.0\.0\.1[:/])"), lambda route: route.abort())
        yield context
        browser.close()


@pytest.fixture
def page(context):
    """A page cut off from the network. Whatever goes wrong in it is kept in `page.troubles` and fails the test at its
    end; a test that provokes something looks at it and clears the list."""
    page = context.new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.troubles = troubles = []
    page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: troubles.append(f"page error: {e}"))
    page.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else troubles.append(f"request failed: {r.url}"))    # left before it came
    page.on("response", lambda r: troubles.append(f"status {r.status}: {r.url}") if r.status >= 400 else None)
    yield page
    page.close()
    assert not troubles
