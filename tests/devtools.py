"""A small client of the Chrome DevTools protocol over pipes: opens local pages, runs expressions, prints."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.lacking import lacking

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0
BROKEN = "axe.run().then(function(r){return r.violations.map(function(v){return v.id})})"
# Elements whose own text has less contrast with what is behind it than 4.5 : 1 (WCAG 2.1).
FAINT = """(function(){
function rgb(text){var m=text.match(/[\\d.]+/g).map(Number);return m.length<4?m.concat(1):m}
function light(c){var v=c.slice(0,3).map(function(x){x/=255;return x<=.04045?x/12.92:Math.pow((x+.055)/1.055,2.4)});
 return .2126*v[0]+.7152*v[1]+.0722*v[2]}
function behind(e){for(;e;e=e.parentElement){var c=rgb(getComputedStyle(e).backgroundColor);if(c[3]>0)return c}
 return [255,255,255,1]}
var out=[];
document.querySelectorAll("body *").forEach(function(e){
 if(e.closest("svg")||e.closest("script,[hidden]")||!e.getClientRects().length)return;
 var own=Array.prototype.some.call(e.childNodes,function(n){return n.nodeType===3&&n.data.trim()});
 if(!own)return;
 var a=light(rgb(getComputedStyle(e).color)),b=light(behind(e)),r=(Math.max(a,b)+.05)/(Math.min(a,b)+.05);
 if(r<4.5&&!e.disabled)out.push([e.tagName,e.className,e.textContent.slice(0,30),r]);
});return out})()"""


def chromium() -> str:
    """The browser's path. In CI it must be there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        lacking("chromium on the path")
    return found


def axe_source() -> str:
    """axe-core 4.12 (Deque), as a Python wheel carries it; only the script is used."""
    found = find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        lacking("axe-playwright-python: make setup")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text()


class Browser:
    """One tab. Keeps what the page logged, threw and requested."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._rest, self._next = send, receive, b"", 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """One command; its result."""
        self._next += 1
        number = self._next
        message: dict[str, Any] = {"id": number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == number:
                assert "error" not in found, found
                return dict(found["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._receive, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        message = dict(json.loads(line))
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        kind, values = message.get("method"), message.get("params", {})
        if kind == "Page.loadEventFired":
            self._loaded += 1
        elif kind == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(values["exceptionDetails"])[:500])
        elif kind == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(values["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(values["args"])[:500])

    def open(self, path: Path, after: str = "") -> float:
        """Open a file; returns the seconds until its load event."""
        return self.visit(f"file://{path}{after}")

    def visit(self, url: str) -> float:
        """Open an address; returns the seconds until its load event."""
        self.call("Page.navigate", url="about:blank")
        self._until_loaded(self._loaded)
        self.requests.clear()
        start, seen = time.perf_counter(), self._loaded
        self.call("Page.navigate", url=url)
        self._until_loaded(seen)
        return time.perf_counter() - start

    def _until_loaded(self, seen: int) -> None:
        limit = time.monotonic() + PATIENCE_S
        while self._loaded <= seen:
            assert time.monotonic() < limit, "the page did not load"
            self._read()

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; errors in it are errors here."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def pdf(self) -> bytes:
        """The page as its style sheet prints it."""
        return base64.b64decode(
            self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        )

    def size(self, width: int, height: int) -> None:
        """Set the size of the screen, in CSS px."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def dark(self, on: bool) -> None:
        """Prefer dark colours, or light ones."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def scripts(self, on: bool) -> None:
        """Allow or forbid the page's own scripts."""
        self.call("Emulation.setScriptExecutionDisabled", value=not on)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, with a profile that is thrown away."""
    theirs_in, send = os.pipe()
    receive, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        started = subprocess.Popen(
            ["bash", "-c", command, chromium(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Browser(send, receive)
        finally:
            started.terminate()
            started.wait(timeout=20)
            os.close(send)
            os.close(receive)
