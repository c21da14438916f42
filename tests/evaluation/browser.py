"""Chromium without a window, spoken to over its debugging pipe: open a page, ask it, press its keys, take its picture."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--window-size=1400,1000",
)  # fmt: skip
PATIENCE = 60.0  # seconds, for a busy machine


class Page:
    """One tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self.said: list[str] = []  # errors, warnings and dialogs, in their order
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """Load a file, and wait until it is drawn; what the last one said is forgotten."""
        self.said.clear()
        self._ask("Page.navigate", url=path.resolve().as_uri())
        self.until(
            "document.readyState === 'complete' && ![...document.querySelectorAll('.figure')].some(f => !f.data)"
        )

    def run(self, script: str) -> Any:
        """The value of an expression."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"not within {PATIENCE} s: {script}"
            time.sleep(0.05)

    def picture(self, path: Path) -> None:
        """Of the whole page."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12000), "scale": 1}
        data = self._ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._heard(answer)

    def _heard(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(f"exception: {about['exceptionDetails']}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.said.append(f"console: {about['args']}")
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.said.append(f"log: {about['entry']['text']}")
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {about['message']}")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            assert part, "chromium has ended"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


def _high(end: int) -> int:
    """The same end of a pipe under a number above 3 and 4, which are the browser's."""
    found = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return found


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A fresh browser, which ends with the block."""
    to_child, from_parent, to_parent, from_child = (_high(end) for end in (*os.pipe(), *os.pipe()))
    shell = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child} {to_child}<&- {from_child}>&-'
    process = subprocess.Popen(
        ["bash", "-c", shell, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_child, from_child),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(from_parent, to_parent)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(from_parent)
        os.close(to_parent)
