"""A page in headless Chromium, driven through its debugging pipe; what it prints and requests is noted."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-pipe",
]
SECONDS = 60.0


class Page:
    """One tab. `problems` are errors of the console and of scripts; `requested` the addresses of all requests."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.number, self.session, self.buffer = 0, "", b""
        self.problems: list[str] = []
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": values}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return dict(found["result"])

    def open(self, url: str, width: int = 1400, dark: bool = False, language: str = "en-US") -> None:
        """Show a page in a window of that width (pixels)."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        agent = self.value("navigator.userAgent")
        self.call("Network.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of an expression, a promise awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a condition holds, which is looked at with every frame."""
        self.value(
            "new Promise((done, failed) => { const begun = Date.now(); const look = () => {"
            f" if ({condition}) done(); else if (Date.now() - begun > {SECONDS * 1000}) failed('not so in time');"
            " else setTimeout(look, 20); }; look(); })"
        )

    def write_text(self, text: str) -> None:
        """What a keyboard types where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, control: bool = False) -> None:
        """One key, its name and its Windows code."""
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], SECONDS)[0], "the browser says nothing"
            block = os.read(self.read, 1 << 16)
            assert block, "the browser has ended"
            self.buffer += block
        line, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        values = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(values["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning", "assert"):
                self.problems.append(str(values["args"]))
            case "Log.entryAdded" if values["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.requested.append(values["request"]["url"])
        return message


@contextmanager
def browser_page(folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, whose profile lies in `folder`."""
    assert CHROMIUM is not None
    ends = [os.pipe(), os.pipe()]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (ends[0][0], ends[1][1])]
    command = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
    words = ["bash", "-c", command, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, pass_fds=high, **quiet)  # type: ignore[call-overload]
    for fd in (*high, ends[0][0], ends[1][1]):
        os.close(fd)
    try:
        yield Page(ends[0][1], ends[1][0])
    finally:
        process.kill()
        process.wait()
        os.close(ends[0][1])
        os.close(ends[1][0])
