"""A second engine: three pages in Firefox, opened from disk, driven by its own remote control (Marionette).

Playwright drives only a Firefox of its own make, and Debian has no geckodriver; the protocol is JSON over a socket.
https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html
"""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from test_book import HTML

pytestmark = [pytest.mark.built, pytest.mark.browser, pytest.mark.slow]

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
SECONDS = 60


class Firefox:
    """A headless Firefox with a profile of its own."""

    def __init__(self, profile: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n')
        flags = ["--headless", "--marionette", "--remote-allow-system-access", "--no-remote", "--profile", str(profile)]
        self.process = subprocess.Popen([FIREFOX, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket = self._connect(port)
        self._read()  # its greeting
        self.asked = 0
        self.ask("WebDriver:NewSession", capabilities={})
        # Requests of pages; Firefox's own have no browsing context.
        watch = """
            const main = Services.wm.getMostRecentWindow("navigator:browser");
            main.asked = [];
            Services.obs.addObserver(subject => {
                const channel = subject.QueryInterface(Ci.nsIHttpChannel);
                if (channel.loadInfo.browsingContext) main.asked.push(channel.URI.spec);
            }, "http-on-modify-request");
            return null;"""
        self.run(watch, chrome=True)

    def _connect(self, port: int) -> socket.socket:
        stop = time.monotonic() + SECONDS
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
            except ConnectionRefusedError:
                if time.monotonic() > stop or self.process.poll() is not None:
                    raise
                time.sleep(0.2)

    def _read(self):
        length = b""
        while not length.endswith(b":"):
            length += self.socket.recv(1)
        text = b""
        while len(text) < int(length[:-1]):
            text += self.socket.recv(int(length[:-1]) - len(text))
        return json.loads(text)

    def ask(self, command: str, **parameters):
        """Send a command and return its result; an error of Firefox fails the test."""
        self.asked += 1
        message = json.dumps([0, self.asked, command, parameters]).encode()
        self.socket.sendall(str(len(message)).encode() + b":" + message)
        _, number, error, result = self._read()
        assert (number, error) == (self.asked, None), error
        return result.get("value", result)

    def run(self, script: str, *, chrome: bool = False):
        """Run the body of a function in the page, or in the browser itself."""
        self.ask("Marionette:SetContext", value="chrome" if chrome else "content")
        found = self.ask("WebDriver:ExecuteScript", script=script, args=[])
        self.ask("Marionette:SetContext", value="content")
        return found

    def wait_for(self, script: str) -> None:
        """Wait until a script returns something true."""
        stop = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < stop, f"Firefox waited {SECONDS} s for: {script}"
            time.sleep(0.1)

    def complaints(self) -> list[str]:
        """Return the errors of pages from disk since the last call; MathJax's MathML draws warnings."""
        script = """
            const found = Services.console.getMessageArray()
                .filter(message => message instanceof Ci.nsIScriptError)
                .filter(message => !(message.flags & Ci.nsIScriptError.warningFlag))
                .filter(message => message.sourceName.startsWith("file:"))
                .map(message => message.errorMessage);
            Services.console.reset();
            return found;"""
        return self.run(script, chrome=True)

    def requests(self) -> list[str]:
        """Return what the pages asked the network for since the last call."""
        return self.run('return Services.wm.getMostRecentWindow("navigator:browser").asked.splice(0)', chrome=True)

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=SECONDS)


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    if not FIREFOX:
        pytest.skip("FIREFOX TESTS SKIPPED: no firefox on this machine (Debian: apt install firefox-esr)")
    engine = Firefox(tmp_path_factory.mktemp("profile"))
    yield engine
    engine.close()


SHOWN = {
    "intro": "return document.querySelectorAll('article .evidence').length > 0",
    "chapters/mxfp8": "return document.querySelectorAll('mjx-container svg').length > 5",
    "explorers/mx-block": "return document.querySelector('[data-explorer] output, [data-explorer] svg') !== null",
}


@pytest.mark.parametrize("name", SHOWN)
def test_page_works_in_firefox_from_disk(firefox, name):
    firefox.run("Services.console.reset(); return null", chrome=True)
    firefox.ask("WebDriver:SetWindowRect", width=500, height=900)
    firefox.ask("WebDriver:Navigate", url=(HTML / f"{name}.html").as_uri())
    firefox.wait_for(SHOWN[name])
    assert firefox.requests() == []
    width, window = firefox.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
    assert firefox.complaints() == []


def test_a_wide_table_shades_its_edges_and_keeps_its_first_column_in_firefox(firefox):
    firefox.ask("WebDriver:SetWindowRect", width=500, height=900)
    firefox.ask("WebDriver:Navigate", url=(HTML / "chapters/kernels.html").as_uri())
    firefox.wait_for("return document.querySelectorAll('.result-table[data-more=right]').length > 0")
    edges = """
        const [box] = document.querySelectorAll(".result-table[data-more]");
        const first = box.querySelector("tbody tr > *");
        const shades = getComputedStyle(box).backgroundImage.split("linear-gradient").slice(1);
        const apart = first.getBoundingClientRect().left - box.getBoundingClientRect().left;
        return [shades[1].includes("0.35"), getComputedStyle(first, "::after").content, Math.round(apart)];"""
    assert firefox.run(edges) == [True, "none", 0]
    firefox.run("document.querySelector('.result-table[data-more]').scrollLeft = 9999; return null")
    firefox.wait_for("return document.querySelectorAll('.result-table[data-more=left]').length > 0")
    assert firefox.run(edges) == [False, '""', 0]


def test_search_works_in_firefox_from_disk(firefox):
    firefox.ask("WebDriver:Navigate", url=(HTML / "search.html").as_uri() + "?q=occupancy")
    firefox.wait_for("return document.querySelectorAll('#search-results li a').length > 0")


def test_a_page_that_throws_or_asks_the_network_is_noticed(firefox, tmp_path):
    outside = "http://127.0.0.1:44444/picture.png"
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><img src={outside}><script>nothing.at.all</script>")
    firefox.ask("WebDriver:Navigate", url=page.as_uri())
    assert firefox.complaints() == ["ReferenceError: nothing is not defined"]
    assert firefox.requests() == [outside]
