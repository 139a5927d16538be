"""A chat server: users sign in with a password (SCRAM), each with several devices at a time.

Run:    python examples/chat/server.py            (--port 4200, --host 127.0.0.1, --database FILE)
Then:   http://localhost:4200/ in a browser, or
        python examples/chat/client.py --user ada --password lovelace

What a client may do:
    send "say" text                        to everybody, as "message" {"id", "at", "from", "text"}
    call "say" {"text", "ref"}             the same, with the message as the answer. A message that is sent again under
                                           the same "ref", which the client chooses, is kept and delivered once
    call "tell" {"to", "text", "ref"}      to all devices of a user, as "direct" {"id", "at", "from", "to", "text"},
                                           those with an inbox also when they come back; all devices of one's own get
                                           the same as "sent"; "ref" may be absent
    call "tell-device" {"device", "text"}  to one of one's own devices, as "note" {"from", "text"}
    call "who-is-online"                   the users and how many devices each has
    call "my-devices"                      one's own devices: [{"device", "name", "info"}]
    call "log-out-device" {"device"}       disconnects one of them, and ends its session
    call "log-out"                         ends the session of this device
    call "history"                         the last messages to everybody, and those to and from oneself
    call "report"                          a long call: sends "progress" {"done", "of"} to the caller while it lasts
    enter the room "chat"                  to show there that one is typing, and see who else is
The welcome has a session key: a device comes back with the identity {"session": key} instead of a password. It also
has the server's time "now": messages that were kept earlier came while the device was away.
The server calls "client-info" of each device. It sends "news" {"text"} when other users come and go, "online" (as
"who-is-online") when anybody's devices change, and "devices" when one's own do.
"""

import argparse
import asyncio
import logging
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wse import Handshake, Inbox, WseConnection, WseError, WseIdentity, WseServer
from wse.auth import ScramServer
from wse.auth.scram import ITERATIONS

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that this file runs from wherever it is started

from examples.chat.store import HISTORY, PASSWORDS, Store, default_file, keys_of_sign_up

WEB = Path(__file__).parent / "web"
PAGE = {
    "/": WEB / "index.html",
    "/chat.js": WEB / "chat.js",
    "/keys.js": WEB / "keys.js",
    "/network.js": WEB / "network.js",
    "/chat.css": WEB / "chat.css",
    "/icon.svg": WEB / "icon.svg",
}

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,19}")
LOGGED_OUT = "chat.logged-out"  # a reason for closing a connection, besides WSE's own
SESSION_ENDED = "chat.session-ended"

REPORT_STEPS = 20
REPORT_PACE = 0.1  # seconds for each: a real archive would take that long

logger = logging.getLogger("chat")


def make_server(port: int, store: Store, *, host: str = "127.0.0.1", log: Callable[[str], object] = print) -> WseServer:
    # A user may have eight devices or tabs at a time; with the default of one, each would push out the one before.
    # Messages to one user are kept for those of her devices that are away; a new device begins with what comes.
    # Messages to everybody are kept for the room that every device is in.
    kept_in = None if store.file == ":memory:" else f"sqlite:{store.file}.inbox"
    inbox = Inbox(messages=HISTORY, store=kept_in, new_device="none")
    server = WseServer(host=host, port=port, conns_per_user=8, files=PAGE, serve_client=True, inbox=inbox)

    # Authentication.

    scram = ScramServer(store, secret=store.secret())
    sessions: dict[str, int] = {}  # the number of each connection's session

    @server.use_challenge
    async def challenge(auth: Handshake) -> Any:
        """Make the quest for a user who logs in, answer one who signs up, or let in a device with a session.

        Signing up is one question and one answer in the handshake: `hi` brings the name and the keys that the browser
        has made of the password, the quest has the result, and the client hangs up and logs in. So a stranger is never
        let in, not even as a guest: every connection belongs to a user who has proved to know a password, no procedure
        needs to check that, and no broadcast reaches anybody else.
        """
        match auth.identity:
            case {"signup": data}:
                return {"signup": sign_up(data)}
            case {"session": str(key)}:
                resume(auth, key)
                return None
        return await scram.challenge(auth)

    def resume(auth: Handshake, key: str) -> None:
        session = store.session(key)
        if session is None:
            auth.refuse(SESSION_ENDED)
        else:
            user, sessions[auth.conn_id] = session
            auth.accept(user, welcome(auth, user, key))

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
            key, sessions[auth.conn_id] = store.open_session(user)
            scram.accept(auth, user, welcome(auth, user, key))

    def welcome(auth: Handshake, user: str, key: str) -> dict[str, Any]:
        online = sorted({*server.clients, user}, key=str)
        return {"user": user, "online": online, "device": auth.conn_id, "session": key, "now": time.time()}

    # Presence.

    def send_news(user: WseIdentity, text: str) -> None:
        for other in server.clients.values():
            if other is not user:
                other.send("news", {"text": text})

    def online() -> dict[str, int]:
        return {str(cid): len(user.conns) for cid, user in server.clients.items()}

    def devices_changed(conn: WseConnection) -> None:
        server.broadcast("online", online())
        assert conn.cid is not None  # it is authenticated
        server.send(conn.cid, "devices")

    everybody = server.room("everybody")  # every device is in it; clients can neither enter nor leave it
    server.room("chat", presence=True)

    @server.room_guard
    def guard(conn: WseConnection, name: Any) -> bool:
        return bool(name == "chat")

    @server.when.joined
    def joined(user: WseIdentity, meta: dict[str, Any]) -> None:
        send_news(user, f"{user.cid} has come online")

    @server.when.left
    def left(user: WseIdentity, code: int, reason: str) -> None:
        send_news(user, f"{user.cid} has gone offline")

    @server.when.connected
    async def welcomed(conn: WseConnection) -> None:
        everybody.add(conn)
        devices_changed(conn)
        try:
            info = await conn.call("client-info", timeout=5)
        except WseError as error:  # an old client, or one that has left: it may chat all the same
            info = error.code
        log(f"{name_of(conn)} says about itself: {info}")

    @server.when.disconnected
    def disconnected(conn: WseConnection, code: int, reason: str) -> None:
        sessions.pop(conn.conn_id, None)
        devices_changed(conn)

    @server.when.error
    def failed(error: WseError, conn: WseConnection | None) -> None:
        # A WseError as its cause was raised by a procedure below for the caller: it is not a fault of the server.
        if not isinstance(error.__cause__, WseError):
            logger.error("%s", error, exc_info=error.__cause__)

    # Messages.

    async def publish(message: dict[str, Any]) -> None:
        # A client repeats a message if its answer was lost, or if keeping it failed. The key makes these one message.
        await everybody.keep("message", message, key=str(message["id"]))

    @server.channel.on("say")
    async def say(conn: WseConnection, payload: Any) -> None:
        await publish(store.add_message(str(conn.cid), device_of(conn), text_of(payload)))

    # Calls.

    @server.register("say")
    async def say_and_confirm(conn: WseConnection, payload: Any) -> dict[str, Any]:
        text, ref = text_of(payload["text"]), ref_of(payload)
        message = sent_before(conn, ref, to=None)
        message = message or store.add_message(str(conn.cid), device_of(conn), text, ref=ref)
        await publish(message)
        return message

    def sent_before(conn: WseConnection, ref: str | None, to: str | None) -> dict[str, Any] | None:
        message = store.sent(str(conn.cid), ref) if ref else None
        if message is not None and message.get("to") != to:
            raise WseError("chat.bad-ref", {"ref": ref}, "the ref is that of another message")
        return message

    @server.register("tell")
    async def tell(conn: WseConnection, payload: Any) -> dict[str, Any]:
        user, text, ref = payload["to"], text_of(payload["text"]), ref_of(payload)
        message = sent_before(conn, ref, user)
        if message is None:
            if user not in server.clients:
                raise WseError("chat.not-online", {"user": user}, f"{user} is not online")
            assert conn.client is not None  # every caller is authenticated
            message = store.add_message(str(conn.cid), device_of(conn), text, to=user, ref=ref)
            conn.client.send("sent", message)
        await server.keep(user, "direct", message, key=str(message["id"]))
        return message

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
        device = own_device(conn, payload["device"])
        end_session(device)
        device.drop(LOGGED_OUT)

    @server.register("log-out")
    def log_out(conn: WseConnection, payload: Any) -> None:
        end_session(conn)

    def end_session(conn: WseConnection) -> None:
        number = sessions.pop(conn.conn_id, None)
        if number is not None:
            store.end_session(number)

    @server.register("who-is-online")
    def who_is_online(conn: WseConnection, payload: Any) -> dict[str, int]:
        return online()

    @server.register("my-devices")
    async def my_devices(conn: WseConnection, payload: Any) -> list[dict[str, Any]]:
        assert conn.client is not None
        devices = list(conn.client.conns.values())
        # Every device is asked at once; the list has a WseError for a device that could not answer.
        infos = await conn.client.call("client-info", timeout=5)
        # The order is that of the sessions: a device that reconnects keeps its place.
        order = {device.conn_id: (name_of(device), sessions.get(device.conn_id, 0)) for device in devices}
        answers = [
            {"device": device.conn_id, "name": name_of(device), "info": None if isinstance(info, WseError) else info}
            for device, info in zip(devices, infos, strict=True)
        ]
        return sorted(answers, key=lambda answer: order[answer["device"]])

    @server.register("history")
    async def get_history(conn: WseConnection, payload: Any) -> list[dict[str, Any]]:
        messages = [message.payload for message in await everybody.history(last=HISTORY)]
        messages += store.private(str(conn.cid))
        # A message that was repeated later than keys are remembered is there twice.
        unique = {message["id"]: message for message in messages}
        return [unique[id_] for id_ in sorted(unique)][-HISTORY:]

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
    """The name that the device has given itself, cut to a sensible length."""
    name = conn.meta.get("device")
    return name[:40] if isinstance(name, str) and name else "unknown"


def name_of(conn: WseConnection) -> str:
    """The user and the device, for people."""
    return f"{conn.cid}/{device_of(conn)}"


def ref_of(payload: Any) -> str | None:
    """The number that the client has given to a message, if it has."""
    ref = payload.get("ref")
    if ref is not None and not (isinstance(ref, str) and 0 < len(ref) <= 40):
        raise WseError("chat.bad-ref", None, "a ref is a text of 1 to 40 characters")
    return ref


def text_of(payload: Any) -> str:
    """Check that a message is a text of sensible length."""
    if not isinstance(payload, str) or not 0 < len(payload) <= 1000:
        raise WseError("chat.bad-text", None, "a message is a text of 1 to 1000 characters")
    return payload


def open_store(file: Path | None) -> Store:
    """Open the store in that file, or in the default one; ends the program with a message if that fails."""
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
