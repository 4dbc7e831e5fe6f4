"""A headless Chromium, spoken to over a pipe: for the tests of the page, and for pictures of it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 120
WRONG = ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening", "Audits.issueAdded")
"Events that tell of an error in a page."


class Browser:
    """One page of a headless Chromium; messages are JSON and end in a zero byte."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self.out = os.pipe()
        self.inp, theirs_out = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.events: list[dict[str, Any]] = []
        self.buffer, self.count, self.session = b"", 0, ""
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in pages if each["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; events that come meanwhile are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (found := self._read()).get("id") != self.count:
            self.events.append(found)
        assert "result" in found, found
        result: dict[str, Any] = found["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.inp], [], [], PATIENCE)[0], f"the browser said nothing for {PATIENCE} s"
            more = os.read(self.inp, 1 << 20)
            assert more, "the browser ended"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def size(self, width: int, height: int = 1000, scale: float = 1) -> None:
        """Give the window a size in CSS pixels, as a phone or a desktop would."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def open(self, page: Path, width: int, height: int = 1000, *, dark: bool = False, scale: float = 1) -> None:
        """Load a file; `events` starts anew."""
        self.events = []
        self.size(width, height, scale)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """The value that a script's promise comes to."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def picture(self, x: float, y: float, width: float, height: float) -> bytes:
        """PNG of a part of the page, in CSS pixels from its top left corner."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def of(self, *methods: str) -> list[dict[str, Any]]:
        """What events of some kinds said."""
        return [each["params"] for each in self.events if each.get("method") in methods]

    def close(self) -> None:
        """End the browser."""
        self.process.kill()
        self.process.wait()
        os.close(self.inp)
        os.close(self.out)
