"""A chat server: users sign in with a password (SCRAM), each with several devices at a time.

Run:    python examples/chat/server.py            (--port 4200, --host 127.0.0.1)
Then:   python examples/chat/client.py --user ada --password lovelace

What a client may do:
    send "say" text                        to everybody, as "message" {"from", "text"}
    call "tell" {"to", "text"}             to all devices of a user, as "direct" {"from", "text"}
    call "tell-device" {"device", "text"}  to one of one's own devices, as "note" {"from", "text"}
    call "who-is-online"                   the users and how many devices each has
    call "my-devices"                      one's own devices: [{"device", "name", "info"}]
    call "history"                         the last messages
The server calls "client-info" of each device. It sends "news" {"text"} when other users come and go.
"""

import argparse
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from wse import Handshake, WseConnection, WseError, WseIdentity, WseServer
from wse.auth import ScramKeys, ScramServer

# For the demo only. A real server has no passwords: it stores what ScramKeys.from_password makes of them.
PASSWORDS = {"ada": "lovelace", "grace": "hopper"}

HISTORY = 100

logger = logging.getLogger("chat")


class Users:
    """The user store that SCRAM asks."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._keys = {name: ScramKeys.from_password(password) for name, password in passwords.items()}

    async def get(self, username: str) -> ScramKeys | None:
        return self._keys.get(username)


def make_server(port: int, *, host: str = "127.0.0.1", log: Callable[[str], object] = print) -> WseServer:
    server = WseServer(host=host, port=port, conns_per_user=5)
    history: deque[dict[str, str]] = deque(maxlen=HISTORY)

    # Who may come in.

    scram = ScramServer(Users(PASSWORDS))
    server.use_challenge(scram.challenge)

    @server.identify
    def identify(auth: Handshake) -> None:
        user = scram.verify(auth)
        if user is None:
            auth.refuse()
        else:
            online = sorted({*server.clients, user}, key=str)
            scram.accept(auth, user, {"online": online, "device": auth.conn_id})

    # Who comes and goes.

    def tell_others(user: WseIdentity, text: str) -> None:
        for other in server.clients.values():
            if other is not user:
                other.send("news", {"text": text})

    @server.when.joined
    def joined(user: WseIdentity, meta: dict[str, Any]) -> None:
        tell_others(user, f"{user.cid} has come online")

    @server.when.left
    def left(user: WseIdentity, code: int, reason: str) -> None:
        tell_others(user, f"{user.cid} has gone offline")

    @server.when.connected
    async def ask(conn: WseConnection) -> None:
        try:
            info = await conn.call("client-info", timeout=5)
        except WseError as error:  # an old client, or one that has gone: it may chat all the same
            info = error.code
        log(f"{name_of(conn)} says about itself: {info}")

    @server.when.error
    def failed(error: WseError, conn: WseConnection | None) -> None:
        # A WseError behind it was raised by a procedure below and has been told to the caller: no fault of ours.
        if not isinstance(error.__cause__, WseError):
            logger.error("%s", error, exc_info=error.__cause__)

    # Messages.

    @server.channel.on("say")
    def say(conn: WseConnection, payload: Any) -> None:
        message = {"from": name_of(conn), "text": text_of(payload)}
        history.append(message)
        server.broadcast("message", message)

    # Calls.

    @server.register("tell")
    def tell(conn: WseConnection, payload: Any) -> None:
        user = payload["to"]
        if user not in server.clients:
            raise WseError("chat.not-online", {"user": user}, f"{user} is not online")
        server.send(user, "direct", {"from": name_of(conn), "text": text_of(payload["text"])})

    @server.register("tell-device")
    def tell_device(conn: WseConnection, payload: Any) -> None:
        assert conn.client is not None  # whoever calls has signed in
        device = conn.client.conns.get(payload["device"])  # of the caller's own devices, not of all
        if device is None:
            raise WseError("chat.no-such-device", {"device": payload["device"]}, "you have no such device")
        device.send("note", {"from": name_of(conn), "text": text_of(payload["text"])})

    @server.register("who-is-online")
    def who_is_online(conn: WseConnection, payload: Any) -> dict[str, int]:
        return {str(cid): len(user.conns) for cid, user in server.clients.items()}

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
    def get_history(conn: WseConnection, payload: Any) -> list[dict[str, str]]:
        return list(history)

    return server


def name_of(conn: WseConnection) -> str:
    """For people: the user and what the device calls itself."""
    return f"{conn.cid}/{conn.meta.get('device', 'unknown')}"


def text_of(payload: Any) -> str:
    """What a client sends is its own affair; what others get is a text of sensible length."""
    if not isinstance(payload, str) or not 0 < len(payload) <= 1000:
        raise WseError("chat.bad-text", None, "a message is a text of 1 to 1000 characters")
    return payload


def main() -> None:
    parser = argparse.ArgumentParser(description="The WSE chat server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4200)
    options = parser.parse_args()
    for user, password in PASSWORDS.items():
        print(f"user {user}, password {password}")
    server = make_server(options.port, host=options.host)
    try:
        server.run()
    except OSError as error:
        raise SystemExit(f"The server cannot listen on port {options.port}: {error.strerror}") from None


if __name__ == "__main__":
    main()
