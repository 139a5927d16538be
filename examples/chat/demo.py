"""The chat server with three devices of two users, step by step; then you join in a browser or a terminal.

Run:    python examples/chat/demo.py       (--port 4200, --database FILE; --exit ends after the transcript)
Shows:  signing in with SCRAM; messages to everybody, to a user and to one device; calls in both directions.
"""

import argparse
import asyncio
import errno
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from wse import WseClient, WseError
from wse.auth import Scram

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that this file runs from wherever it is started

from examples.chat.server import make_server, open_store
from examples.chat.store import PASSWORDS, Store


class Device:
    """One device of a user. It prints each message that it gets, and `heard` waits for one."""

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
        self.is_silent = False
        self.tells_calls = True

        @self.client.when.ready
        def ready(welcome: Any) -> None:
            self.print(f"signs in; online: {', '.join(welcome['online'])}")

    def _info(self, _: Any) -> dict[str, str]:
        if self.tells_calls:
            self.print("is asked by the server for its client-info")
        return {"kind": self._name, "app": "demo"}

    def _listener(self, template: str, user: str) -> Callable[[Any], None]:
        def heard(payload: Any) -> None:
            self.print(template.format_map({"to": user, **payload}))
            self._heard.put_nowait(None)

        return heard

    def print(self, text: str) -> None:
        if not self.is_silent:
            line(self.label, text)

    async def heard(self) -> None:
        """Wait for one more message."""
        await asyncio.wait_for(self._heard.get(), timeout=10)

    async def call(self, procedure: str, payload: Any = None) -> Any:
        arguments = "" if payload is None else f" with {payload}"
        self.print(f"calls {procedure}{arguments}")
        return await self.client.call(procedure, payload)


def without(message: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in keys}


def line(who: str, text: str) -> None:
    print(f"  {who:<14} {text}", flush=True)


def step(text: str) -> None:
    print(f"\n{text}", flush=True)


async def transcript(url: str, asked: asyncio.Queue[str]) -> list[Device]:
    """Three devices of two users talk; every step waits for its effects."""
    laptop, phone = Device(url, "ada", "laptop"), Device(url, "ada", "phone")
    desktop = Device(url, "grace", "desktop")
    devices = [laptop, phone, desktop]

    step("Three devices of two users sign in with SCRAM-SHA-256; the server calls each of them:")
    for device in devices:
        await device.client.connect()
        line("server", await asked.get())
    for device in (laptop, phone):
        await device.heard()  # that grace has come online

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
    history = await desktop.call("history")
    desktop.print(f"gets: {[without(message, 'id', 'at') for message in history]}")
    try:
        await desktop.call("tell", {"to": "charles", "text": "Anybody there?"})
    except WseError as error:
        desktop.print(f"gets the error {error.code}: {error.message}")
    return devices


async def show(port: int) -> None:
    """Show the transcript only."""
    asked: asyncio.Queue[str] = asyncio.Queue()
    with closing(Store(":memory:")) as store:
        async with make_server(port, store, log=asked.put_nowait) as server:
            print(f"The chat server listens on {server.url}")
            laptop, phone, desktop = await transcript(server.url, asked)
            step("Ada leaves, and Grace learns of it:")
            await laptop.client.close()
            await phone.client.close()
            await desktop.heard()
            await desktop.client.close()


async def show_and_stay(port: int, store: Store) -> None:
    """Show the transcript, and then serve everybody.

    The transcript has a server of its own: a page that is still open when the demo starts again would come into the
    middle of it. Afterwards its devices move over.
    """
    asked: asyncio.Queue[str] = asyncio.Queue()
    async with make_server(port, store, log=asked.put_nowait) as server:
        print(f"The chat server listens on {server.url}")
        asked_on_stage: asyncio.Queue[str] = asyncio.Queue()
        with closing(Store(":memory:")) as props:
            async with make_server(0, props, log=asked_on_stage.put_nowait) as stage:
                devices = await transcript(stage.url, asked_on_stage)
                for device in devices:
                    device.is_silent = True
                    device.tells_calls = False  # the page asks all the time
                for device in devices:
                    await device.client.jump(server.url)
                    await asked.get()
                for device in devices:
                    device.is_silent = False
        step("Join in a browser, where the three devices are as well (Ctrl-C ends the demo):")
        print(f"  http://localhost:{server.port}/")
        step("Or from another terminal:")
        url = "" if server.port == 4200 else f" --url {server.url}"
        for user, password in PASSWORDS.items():
            print(f"  {client_command()} --user {user} --password {password}{url}", flush=True)
        print(flush=True)
        while True:
            line("server", await asked.get())


def client_command() -> str:
    """Return the command that starts the client from here, with the Python that runs this."""
    here = Path.cwd()
    paths = (Path(sys.executable), Path(__file__).resolve().with_name("client.py"))
    return " ".join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths)


def main() -> int:
    parser = argparse.ArgumentParser(description="The WSE chat demo.")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--exit", action="store_true", help="end after the transcript")
    parser.add_argument("--database", type=Path, help="the SQLite file of users and messages")
    options = parser.parse_args()
    try:
        if options.exit:
            asyncio.run(show(options.port))
        else:
            with closing(open_store(options.database)) as store:
                asyncio.run(show_and_stay(options.port, store))
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
