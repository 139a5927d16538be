"""The chat server with three devices of two users, shown step by step; then the chat is yours.

Run:    python examples/chat/demo.py              (--port 4200; --exit ends after the transcript)
Shows:  signing in with SCRAM; messages to everybody, to a user and to one device; calls in both directions.
"""

import argparse
import asyncio
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wse import WseClient, WseError
from wse.auth import Scram

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that this file runs from wherever it is started

from examples.chat.server import PASSWORDS, make_server


class Device:
    """One device of a user. It prints what happens to it, and `heard` waits for something to happen."""

    def __init__(self, url: str, user: str, name: str) -> None:
        self.label = f"{user}/{name}"
        self.client = WseClient(url, identity=Scram(user, PASSWORDS[user]), meta={"device": name})
        self._heard: asyncio.Queue[None] = asyncio.Queue()
        self.client.register("client-info", self._info)
        for type_, template in {
            "message": "hears {from}: {text}",
            "direct": "hears {from}, to {to} only: {text}",
            "note": "hears {from}, to this device only: {text}",
            "news": "learns that {text}",
        }.items():
            self.client.channel.on(type_, self._listener(template, user))
        self._name = name

        @self.client.when.ready
        def ready(welcome: Any) -> None:
            self.print(f"signs in; online: {', '.join(welcome['online'])}")

    def _info(self, _: Any) -> dict[str, str]:
        self.print("is asked by the server for its client-info")
        return {"kind": self._name, "app": "demo"}

    def _listener(self, template: str, user: str) -> Callable[[Any], None]:
        def heard(payload: Any) -> None:
            self.print(template.format(to=user, **payload))
            self._heard.put_nowait(None)

        return heard

    def print(self, text: str) -> None:
        print(f"  {self.label:<14} {text}", flush=True)

    async def heard(self) -> None:
        """Wait until this device has heard one thing more."""
        await asyncio.wait_for(self._heard.get(), timeout=10)

    async def call(self, procedure: str, payload: Any = None) -> Any:
        arguments = "" if payload is None else f" with {payload}"
        self.print(f"calls {procedure}{arguments}")
        return await self.client.call(procedure, payload)


def step(text: str) -> None:
    print(f"\n{text}", flush=True)


async def transcript(url: str, asked: asyncio.Queue[str]) -> list[Device]:
    """Three devices of two users talk; every step waits until what it shows has happened."""
    laptop, phone = Device(url, "ada", "laptop"), Device(url, "ada", "phone")
    desktop = Device(url, "grace", "desktop")
    devices = [laptop, phone, desktop]

    step("Three devices of two users sign in with SCRAM-SHA-256; the server calls each of them:")
    for device in devices:
        await device.client.connect()
        print(f"  {'server':<14} {await asked.get()}")
    for device in (laptop, phone):
        await device.heard()  # that grace has come

    step("A message to everybody:")
    laptop.print("says: Hello, all.")
    laptop.client.send("say", "Hello, all.")
    for device in devices:
        await device.heard()

    step("A message to a user arrives on all her devices:")
    await desktop.call("tell", {"to": "ada", "text": "Lunch?"})
    for device in (laptop, phone):
        await device.heard()

    step("A call, and a message to one device:")
    own = await laptop.call("my-devices")
    for device_ in own:
        laptop.print(f"gets: {device_['name']} {device_['info']}")
    laptop.print("calls tell-device for ada/phone")
    await laptop.client.call("tell-device", {"device": own[1]["device"], "text": "Buy bread."})
    await phone.heard()

    step("Calls with a result, and one that fails:")
    phone.print(f"gets: {await phone.call('who-is-online')}")
    desktop.print(f"gets: {await desktop.call('history')}")
    try:
        await desktop.call("tell", {"to": "charles", "text": "Anybody there?"})
    except WseError as error:
        desktop.print(f"gets the error {error.code}: {error.message}")
    return devices


async def demo(port: int, *, stay: bool) -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    async with make_server(port, log=asked.put_nowait) as server:
        print(f"The chat server listens on {server.url}")
        devices = await transcript(server.url, asked)
        if stay:
            url = "" if server.port == 4200 else f" --url {server.url}"
            step("Join from another terminal (Ctrl-C ends the demo):")
            for user, password in PASSWORDS.items():
                print(f"  {client_command()} --user {user} --password {password}{url}", flush=True)
            print(flush=True)
            await server.serve_forever()
        step("Ada leaves, and Grace learns of it:")
        laptop, phone, desktop = devices
        await laptop.client.close()
        await phone.client.close()
        await desktop.heard()
        await desktop.client.close()


def client_command() -> str:
    """How to start the client from here, with the Python that runs this, which has wse."""
    here = Path.cwd()
    paths = (Path(sys.executable), Path(__file__).resolve().with_name("client.py"))
    return " ".join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths)


def main() -> int:
    parser = argparse.ArgumentParser(description="The WSE chat demo.")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--exit", action="store_true", help="end after the transcript")
    options = parser.parse_args()
    try:
        asyncio.run(demo(options.port, stay=not options.exit))
    except KeyboardInterrupt:
        print("\nThe demo has ended.")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(f"Port {options.port} is taken; choose another one with --port.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
