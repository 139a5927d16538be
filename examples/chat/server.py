"""A chat server: users sign in with a password (SCRAM), each with several devices at a time.

Run:    python examples/chat/server.py            (--port 4200, --host 127.0.0.1, --database FILE)
Then:   http://localhost:4200/ in a browser, or
        python examples/chat/client.py --user ada --password lovelace

What a client may do:
    send "say" text                        to everybody, as "message" {"id", "at", "from", "text"}
    call "tell" {"to", "text"}             to all devices of a user, as "direct" {"id", "at", "from", "to", "text"};
                                           all devices of one's own get the same as "sent"
    call "tell-device" {"device", "text"}  to one of one's own devices, as "note" {"from", "text"}
    call "who-is-online"                   the users and how many devices each has
    call "my-devices"                      one's own devices: [{"device", "name", "info"}]
    call "log-out-device" {"device"}       disconnects one of them
    call "history"                         the last messages
    call "report"                          a long call: sends "progress" {"done", "of"} to the caller while it lasts
The server calls "client-info" of each device. It sends "news" {"text"} when other users come and go, "online" (as
"who-is-online") when anybody's devices change, and "devices" when one's own do.
"""

import argparse
import asyncio
import logging
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wse import Handshake, WseConnection, WseError, WseIdentity, WseServer
from wse.auth import ScramServer
from wse.auth.scram import ITERATIONS

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that this file runs from wherever it is started

from examples.chat.store import PASSWORDS, Store, default_file, keys_of_sign_up

WEB = Path(__file__).parent / "web"
PAGE = {
    "/": WEB / "index.html",
    "/chat.js": WEB / "chat.js",
    "/keys.js": WEB / "keys.js",
    "/chat.css": WEB / "chat.css",
    "/icon.svg": WEB / "icon.svg",
}

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,19}")
LOGGED_OUT = "chat.logged-out"  # why a connection is closed, beside WSE's own reasons

REPORT_STEPS = 20
REPORT_PACE = 0.1  # seconds for each: a real archive would take that long

logger = logging.getLogger("chat")


def make_server(port: int, store: Store, *, host: str = "127.0.0.1", log: Callable[[str], object] = print) -> WseServer:
    server = WseServer(host=host, port=port, conns_per_user=8, files=PAGE, serve_client=True)

    # Who may come in.

    scram = ScramServer(store, secret=store.secret())

    @server.use_challenge
    async def challenge(auth: Handshake) -> Any:
        """The quest for somebody who logs in; or the answer to somebody who signs up.

        Signing up is one question and one answer in the handshake: `hi` brings the name and the keys that the browser
        has made of the password, the quest tells the result, and the client hangs up and logs in. So a stranger is
        never let in, not even as a guest: whoever has a connection has proved to know a password, no procedure needs to
        ask for more, and no broadcast reaches anybody else.
        """
        if isinstance(auth.identity, dict) and "signup" in auth.identity:
            return {"signup": sign_up(auth.identity["signup"])}
        return await scram.challenge(auth)

    def sign_up(data: Any) -> str:
        try:
            name, keys = data["name"], keys_of_sign_up(data["keys"], ITERATIONS)
            if not NAME.fullmatch(name):
                return "bad-name"
        except (KeyError, TypeError, ValueError):
            return "bad-request"
        if store.is_full():
            return "full"
        return "done" if store.add_user(name, keys) else "name-taken"

    @server.identify
    def identify(auth: Handshake) -> None:
        user = scram.verify(auth)  # None as well for a client that answers the result of its sign-up
        if user is None:
            auth.refuse()
        else:
            online = sorted({*server.clients, user}, key=str)
            scram.accept(auth, user, {"user": user, "online": online, "device": auth.conn_id})

    # Who comes and goes.

    def tell_others(user: WseIdentity, text: str) -> None:
        for other in server.clients.values():
            if other is not user:
                other.send("news", {"text": text})

    def online() -> dict[str, int]:
        return {str(cid): len(user.conns) for cid, user in server.clients.items()}

    def devices_changed(conn: WseConnection) -> None:
        server.broadcast("online", online())
        assert conn.cid is not None  # it has been let in
        server.send(conn.cid, "devices")

    @server.when.joined
    def joined(user: WseIdentity, meta: dict[str, Any]) -> None:
        tell_others(user, f"{user.cid} has come online")

    @server.when.left
    def left(user: WseIdentity, code: int, reason: str) -> None:
        tell_others(user, f"{user.cid} has gone offline")

    @server.when.connected
    async def ask(conn: WseConnection) -> None:
        devices_changed(conn)
        try:
            info = await conn.call("client-info", timeout=5)
        except WseError as error:  # an old client, or one that has gone: it may chat all the same
            info = error.code
        log(f"{name_of(conn)} says about itself: {info}")

    @server.when.disconnected
    def disconnected(conn: WseConnection, code: int, reason: str) -> None:
        devices_changed(conn)

    @server.when.error
    def failed(error: WseError, conn: WseConnection | None) -> None:
        # A WseError behind it was raised by a procedure below and has been told to the caller: no fault of ours.
        if not isinstance(error.__cause__, WseError):
            logger.error("%s", error, exc_info=error.__cause__)

    # Messages.

    @server.channel.on("say")
    def say(conn: WseConnection, payload: Any) -> None:
        message = store.add_message(str(conn.cid), device_of(conn), text_of(payload))
        server.broadcast("message", message)

    # Calls.

    @server.register("tell")
    def tell(conn: WseConnection, payload: Any) -> None:
        user, text = payload["to"], text_of(payload["text"])
        if user not in server.clients:
            raise WseError("chat.not-online", {"user": user}, f"{user} is not online")
        assert conn.client is not None  # whoever calls has signed in
        message = store.add_message(str(conn.cid), device_of(conn), text, to=user)
        server.send(user, "direct", message)
        conn.client.send("sent", message)

    def own_device(conn: WseConnection, device_id: Any) -> WseConnection:
        assert conn.client is not None
        device = conn.client.conns.get(device_id)  # of the caller's own devices, not of all
        if device is None:
            raise WseError("chat.no-such-device", {"device": device_id}, "you have no such device")
        return device

    @server.register("tell-device")
    def tell_device(conn: WseConnection, payload: Any) -> None:
        device = own_device(conn, payload["device"])
        device.send("note", {"from": name_of(conn), "text": text_of(payload["text"])})

    @server.register("log-out-device")
    def log_out_device(conn: WseConnection, payload: Any) -> None:
        own_device(conn, payload["device"]).drop(LOGGED_OUT)

    @server.register("who-is-online")
    def who_is_online(conn: WseConnection, payload: Any) -> dict[str, int]:
        return online()

    @server.register("my-devices")
    async def my_devices(conn: WseConnection, payload: Any) -> list[dict[str, Any]]:
        assert conn.client is not None
        devices = list(conn.client.conns.values())
        # Every device is asked at once; a WseError stands in the list where one could not answer.
        infos = await conn.client.call("client-info", timeout=5)
        return [
            {"device": device.conn_id, "name": name_of(device), "info": None if isinstance(info, WseError) else info}
            for device, info in zip(devices, infos, strict=True)
        ]

    @server.register("history")
    def get_history(conn: WseConnection, payload: Any) -> list[dict[str, Any]]:
        return store.history(str(conn.cid))

    @server.register("report")
    async def report(conn: WseConnection, payload: Any) -> dict[str, Any]:
        texts = store.texts()
        people: Counter[str] = Counter()
        words = 0
        for step in range(REPORT_STEPS):
            for user, text in texts[step::REPORT_STEPS]:
                people[user] += 1
                words += len(text.split())
            await asyncio.sleep(REPORT_PACE)
            conn.send("progress", {"done": step + 1, "of": REPORT_STEPS})
        return {"messages": len(texts), "words": words, "people": dict(people.most_common(3))}

    return server


def device_of(conn: WseConnection) -> str:
    """What the device calls itself, as far as others are to see it."""
    name = conn.meta.get("device")
    return name[:40] if isinstance(name, str) and name else "unknown"


def name_of(conn: WseConnection) -> str:
    """For people: the user and the device."""
    return f"{conn.cid}/{device_of(conn)}"


def text_of(payload: Any) -> str:
    """What a client sends is its own affair; what others get is a text of sensible length."""
    if not isinstance(payload, str) or not 0 < len(payload) <= 1000:
        raise WseError("chat.bad-text", None, "a message is a text of 1 to 1000 characters")
    return payload


def open_store(file: Path | None) -> Store:
    """The store in that file, or in the default one; ends the program with a line if it cannot be had."""
    try:
        return Store(file or default_file())
    except (OSError, sqlite3.Error) as error:
        raise SystemExit(f"The server cannot keep its data in {file or 'its default place'}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="The WSE chat server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--database", type=Path, help="the SQLite file of users and messages")
    options = parser.parse_args()
    store = open_store(options.database)
    print(f"page http://localhost:{options.port}/")
    for user, password in PASSWORDS.items():
        print(f"user {user}, password {password}")
    server = make_server(options.port, store, host=options.host)
    try:
        server.run()
    except OSError as error:
        raise SystemExit(f"The server cannot listen on port {options.port}: {error.strerror}") from None
    finally:
        store.close()


if __name__ == "__main__":
    main()
