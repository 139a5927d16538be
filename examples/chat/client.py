"""A chat client for the terminal.

Run:    python examples/chat/client.py --user ada --password lovelace        (--url ws://127.0.0.1:4200)
        Without --password it asks for it. The server is `python examples/chat/demo.py`, or server.py next to it.

Type to chat with everybody, or:
    /to USER TEXT        to all devices of one user
    /note DEVICE TEXT    to one of your own devices
    /who                 who is online
    /devices             your own devices
    /history             what was said before
    /quit
"""

import argparse
import asyncio
import getpass
import platform
import sys
import threading
from typing import Any

from wse import ClientStatus, CloseReason, WseClient, WseError
from wse.auth import Scram

HELP = "Type to chat. /to USER TEXT, /note DEVICE TEXT, /who, /devices, /history, /quit"


async def chat(options: argparse.Namespace) -> int:
    client = WseClient(
        options.url,
        identity=Scram(options.user, options.password),
        meta={"device": options.device},
        reconnect=True,
    )
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    @client.register("client-info")
    def client_info(_: Any) -> dict[str, str]:
        return {"device": options.device, "system": platform.system(), "python": platform.python_version()}

    @client.channel.on("message")
    def message(payload: Any) -> None:
        show(f"{payload['from']}: {payload['text']}")

    @client.channel.on("direct")
    def direct(payload: Any) -> None:
        show(f"{payload['from']}, to you only: {payload['text']}")

    @client.channel.on("note")
    def note(payload: Any) -> None:
        show(f"{payload['from']}, to this device: {payload['text']}")

    @client.channel.on("news")
    def news(payload: Any) -> None:
        show(f"* {payload['text']}")

    @client.when.error
    def failed(error: WseError) -> None: ...  # attempts that will be repeated; errors of commands are shown below

    try:
        welcome = await asyncio.wait_for(client.connect(), timeout=5)
    except TimeoutError:
        print(f"No server at {options.url}.", file=sys.stderr)
        return 1
    except WseError as error:
        print(f"Cannot sign in at {options.url}: {error.message or error}", file=sys.stderr)
        return 1
    show(f"* signed in as {options.user}; online: {', '.join(welcome['online'])}")
    show(HELP)

    @client.when.closed
    async def closed(code: int, reason: str) -> None:
        await asyncio.sleep(0)  # whether it reconnects shows after this event
        if client.status is ClientStatus.RE_CONNECTING:
            show(f"* the connection is lost ({code}), trying again")
        elif reason != CloseReason.BY_CLIENT:
            show(f"* the connection is closed: {code} {reason}")
            lines.put_nowait(None)

    read_in_thread(lines)
    while (line := await lines.get()) is not None and line != "/quit":
        try:
            await run(client, line)
        except WseError as error:
            show(f"! {error.message or error}")
    if client.status is ClientStatus.READY:
        # The answer comes after the effects of all earlier messages, so these are shown before leaving.
        await client.call("who-is-online")
    await client.close()
    return 0


async def run(client: WseClient, line: str) -> None:
    """Run a line that the user has typed."""
    command, _, rest = line.partition(" ")
    name, _, text = rest.partition(" ")
    if not line:
        return
    if not line.startswith("/"):
        await client.call("say", {"text": line})  # an answer, so that nothing is lost unnoticed
    elif command == "/to" and text:
        await client.call("tell", {"to": name, "text": text})
    elif command == "/note" and text:
        await client.call("tell-device", {"device": name, "text": text})
    elif command == "/who":
        for user, devices in (await client.call("who-is-online")).items():
            show(f"  {user}, {devices} device{'s' if devices > 1 else ''}")
    elif command == "/devices":
        for device in await client.call("my-devices"):
            show(f"  {device['device']}  {device['name']}  {device['info']}")
    elif command == "/history":
        for message in await client.call("history"):
            to = f", to {message['to']} only" if "to" in message else ""
            show(f"  {message['from']}{to}: {message['text']}")
    else:
        show(HELP)


def show(text: str) -> None:
    """Print a line. Text that others have written must not control the terminal."""
    text = " / ".join(text.splitlines())
    print("".join(char for char in text if char.isprintable()), flush=True)


def read_in_thread(lines: asyncio.Queue[str | None]) -> None:
    """Put what is typed into the queue, and None at its end.

    A thread reads terminals, pipes and files alike on every system. It is a daemon: nothing can wake it from its wait
    for input, and the program must be able to end meanwhile.
    """
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line.strip())
            loop.call_soon_threadsafe(lines.put_nowait, None)
        except RuntimeError:
            pass  # the loop is closed: the program is ending

    threading.Thread(target=read, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat client; see the top of this file.")
    parser.add_argument("--url", default="ws://127.0.0.1:4200")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password")
    parser.add_argument("--device", default="terminal", help="what this device calls itself")
    options = parser.parse_args()
    if options.password is None:
        options.password = getpass.getpass()
    try:
        return asyncio.run(chat(options))
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
