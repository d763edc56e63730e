"""Headless Chromium by its own protocol over two pipes: opens a page, tells what it says, asks for and shows."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
           "--no-first-run", "--disable-background-networking", "--disable-extensions",
           "--hide-scrollbars")  # fmt: skip


class Browser:
    """One tab. `events`: all events of the browser since `open`, by name."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self.home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_read, self.writes = os.pipe()
        self.reads, to_write = os.pipe()

        def as_3_and_4() -> None:  # where --remote-debugging-pipe looks for them
            for source, place in ((os.dup(to_read), 3), (os.dup(to_write), 4)):
                os.dup2(source, place)

        command = [PROGRAM, *OPTIONS, f"--user-data-dir={self.home.name}", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=as_3_and_4, close_fds=False, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self.count, self.session, self.buffer = 0, "", b""
        self.events: list[tuple[str, dict[str, Any]]] = []
        tab = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self.home.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The browser's answer to a command; events that come before it are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        os.write(
            self.writes, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while (answer := self._next()).get("id") != self.count:
            self.events.append((answer.get("method", ""), answer.get("params", {})))
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.reads, 1 << 20)
            assert part, "the browser ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, width: int = 1280, dark: bool = False) -> float:
        """Open a file, or an address; seconds until its load event."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        started = time.monotonic()
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            answer = self._next()
            self.events.append((answer.get("method", ""), answer.get("params", {})))
        return time.monotonic() - started

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < until, self.run("document.body.innerText")
            time.sleep(0.1)

    def give(self, file: Path) -> None:
        """Give a file to the page's first input for files."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def complaints(self) -> list[Any]:
        """All that the page wrote to the console, and errors."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [params for name, params in self.events if name in names]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself and what it holds inside not counted."""
        asked = [params["request"]["url"] for name, params in self.events if name == "Network.requestWillBeSent"]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
