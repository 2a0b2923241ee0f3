"""A page as headless Chromium shows it, over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from helpers.programs import wait_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What a page came to: its width in pixels, what the console complained of, what it asked for, and a picture.

    value: of the expression that was asked for.
    """

    width: int
    text: str
    value: Any
    errors: list[str]
    requests: list[str]
    png: bytes


@contextmanager
def browser(folder: Path) -> Iterator[str]:
    """A Chromium with an empty profile in the folder; the address of its debugging protocol."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install it (Debian: apt-get install chromium)")
    port = folder / "profile" / "DevToolsActivePort"
    program = subprocess.Popen([CHROMIUM, *OPTIONS, f"--user-data-dir={port.parent}"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: port.exists() and len(port.read_text().split()) == 2)
        number, path = port.read_text().split()
        yield f"ws://127.0.0.1:{number}{path}"
    finally:
        program.terminate()
        program.wait()


def look(address: str, page: Path, width: int, *, dark: bool = False, scripts: bool = True, ask: str = "null") -> Look:
    """Open a page at a width, in light or dark, with its scripts or without. ask: an expression to evaluate."""
    return asyncio.run(_look(address, page.resolve().as_uri(), width, "dark" if dark else "light", scripts, ask))


async def _look(address: str, page: str, width: int, scheme: str, scripts: bool, asked_for: str) -> Look:
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(address, max_msg_size=0) as socket,
    ):
        numbers = itertools.count(1)
        heard: list[dict[str, Any]] = []

        async def ask(method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
            number = next(numbers)
            message = {"id": number, "method": method, "params": params}
            await socket.send_json(message | ({"sessionId": session} if session else {}))
            while (answer := await socket.receive_json()).get("id") != number:
                heard.append(answer)
            assert "error" not in answer, answer
            return answer["result"]

        target = await ask("Target.createTarget", url="about:blank")
        session = (await ask("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            await ask(f"{domain}.enable", session)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await ask("Emulation.setDeviceMetricsOverride", session, **metrics)
        scheme_of_page = [{"name": "prefers-color-scheme", "value": scheme}]
        await ask("Emulation.setEmulatedMedia", session, features=scheme_of_page)
        await ask("Emulation.setScriptExecutionDisabled", session, value=not scripts)
        await ask("Page.navigate", session, url=page)
        while not any(event["method"] == "Page.loadEventFired" for event in heard):
            heard.append(await socket.receive_json())

        async def value(expression: str) -> Any:
            made = await ask("Runtime.evaluate", session, expression=expression, returnByValue=True)
            assert "exceptionDetails" not in made, made
            return made["result"].get("value")

        wide, text = await value("document.documentElement.scrollWidth"), await value("document.body.innerText")
        found = await value(asked_for)
        picture = await ask("Page.captureScreenshot", session, captureBeyondViewport=True)
        await ask("Target.closeTarget", targetId=target["targetId"])
    by_name: dict[str, list[dict[str, Any]]] = {}
    for event in heard:
        by_name.setdefault(event["method"], []).append(event["params"])
    wrong = by_name.get("Log.entryAdded", []) + by_name.get("Runtime.exceptionThrown", [])
    asked = [params["request"]["url"] for params in by_name.get("Network.requestWillBeSent", [])]
    loaded = [url for url in asked if not url.startswith("data:")]
    return Look(wide, text, found, [*map(str, wrong)], loaded, base64.b64decode(picture["data"]))
