"""A headless Chromium, spoken to through two pipes (its DevTools protocol): no socket, no other package."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60
# the browser reads its commands from descriptor 3 and answers on 4; both may be taken here
_AT_3_AND_4 = """
import os, sys
commands, answers = (os.dup(os.dup(os.dup(os.dup(int(word))))) for word in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A tab: what it was told, what it complained of and what it asked the network for."""

    def __init__(self, commands, answers):
        self._commands, self._answers, self._left, self._number = commands, answers, b"", 0
        self.complaints, self.requests = [], []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, place, width, height):
        """Show a file, or what is at an address, and wait until it is loaded."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._call("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        self.evaluate(
            "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        )

    def evaluate(self, expression):
        """The value of a JavaScript expression, or of the promise that it is."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression):
        """The value of a JavaScript expression as soon as it is one that counts as true."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never: {expression}"
            time.sleep(0.05)
        return value

    def click(self, selector):
        """Press the mouse over what a CSS selector finds, as a person would."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found}?.checkVisibility()")
        place = self.evaluate(
            f"""(() => {{
                const found = {found};
                found.scrollIntoView({{block: 'center', behavior: 'instant'}});
                const box = found.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def upload(self, selector, path):
        """Give a file to the file input that a CSS selector finds."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{found}")
        place = self._call("Runtime.evaluate", expression=found)["result"]["objectId"]
        self._call("DOM.setFileInputFiles", files=[str(path)], objectId=place)

    def screenshot(self):
        """The tab as it is seen, a PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self, deadline):
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            received = os.read(self._answers, 1 << 16)
            assert received, "the browser went away"
            self._left += received
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(parameters["args"])
            case "Runtime.exceptionThrown":
                self.complaints.append(parameters["exceptionDetails"])
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(parameters["entry"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])


@contextmanager
def chromium(profile, *more):
    """A tab of a fresh browser; the test is skipped where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}")
    command_out, command_in = os.pipe()
    answer_out, answer_in = os.pipe()
    words = [
        *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--no-sandbox"),
        *(
            "--disable-dev-shm-usage",
            "--autoplay-policy=no-user-gesture-required",
            *more,
            f"--user-data-dir={profile}",
        ),
    ]
    with subprocess.Popen(
        [sys.executable, "-c", _AT_3_AND_4, str(command_out), str(answer_in), program, *words],
        pass_fds=(command_out, answer_in),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(command_out)
        os.close(answer_in)
        try:
            yield Page(command_in, answer_out)
        finally:
            process.terminate()
            process.wait(20)
            os.close(command_in)
            os.close(answer_out)
