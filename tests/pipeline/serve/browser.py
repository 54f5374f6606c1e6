"""A headless Chromium, driven by its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

_SCRIPT_S = 20.0


def chromium() -> str | None:
    """The browser's program, or None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((p for p in map(shutil.which, names) if p), None)


class Browser:
    """One page of a browser of its own.

    Args:
      program: of the browser.
      profile: an empty folder.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # The browser writes the port it got, then the path of its socket.
        told = profile / "DevToolsActivePort"
        wait_for(lambda: told.exists() and len(told.read_text().split()) == 2)
        port, path = told.read_text().split()
        self._socket = connect(
            f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None
        )
        self._number, self._session = 0, None
        self.problems: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", flatten=True, **target)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            said = json.loads(self._socket.recv(timeout=_SCRIPT_S))
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]
            self._note(said)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        if method == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog: {params['message']}")
            self._socket.send(
                json.dumps(
                    {
                        "id": 0,
                        "method": "Page.handleJavaScriptDialog",
                        "params": {"accept": True},
                        "sessionId": self._session,
                    }
                )
            )

    def open(self, url: str) -> None:
        # From elsewhere, since another fragment alone would load nothing.
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression."""
        answer = self.send(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Waits until the expression is true."""
        wait_for(lambda: self.run(script), script)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Sets the window and the colours that the user prefers."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = "dark" if dark else "light"
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def screenshot(self, path: Path) -> None:
        picture = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(_SCRIPT_S)


def wait_for(is_so: Any, what: str = "the browser") -> None:
    """Asks until it is so, or too much time has passed."""
    end = time.monotonic() + _SCRIPT_S
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {_SCRIPT_S} s")
        time.sleep(0.05)
