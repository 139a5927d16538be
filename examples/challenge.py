"""Challenge and response: the client proves that it has a secret without sending it.

Run:    python examples/challenge.py
Shows:  the open form of the handshake. The server sends a random quest, the client answers with an HMAC over it, and
        the identify handler compares. This is meant for strong random secrets such as device keys. For passwords, use
        SCRAM: see scram_auth.py.
"""

import asyncio
import hmac
import secrets

from wse import Handshake, WseClient, WseError, WseServer

DEVICE_KEYS = {"sensor-1": secrets.token_bytes(32), "sensor-2": secrets.token_bytes(32)}


def prove(key: bytes, quest: str) -> str:
    return hmac.digest(key, quest.encode(), "sha256").hex()


def make_server() -> WseServer:
    server = WseServer(port=0)

    @server.use_challenge
    def challenge(auth: Handshake) -> str:
        # A new quest for every connection makes recorded answers worthless. Unknown devices get a quest as well, so
        # that nobody can find out which devices exist.
        return secrets.token_hex(32)

    @server.identify
    def identify(auth: Handshake) -> None:
        key = DEVICE_KEYS.get(auth.identity) if isinstance(auth.identity, str) else None
        assert auth.challenge is not None  # the handler runs after the challenge
        response = auth.challenge.response
        # compare_digest takes the same time no matter where the two differ.
        if (
            key is not None
            and isinstance(response, str)
            and hmac.compare_digest(response.encode(), prove(key, auth.challenge.quest).encode())
        ):
            auth.accept(auth.identity)
        else:
            auth.refuse()

    return server


async def attempt(server: WseServer, device: str, key: bytes) -> None:
    client = WseClient(server.url, identity=device)

    @client.challenge
    def respond(quest: str) -> str:
        return prove(key, quest)

    try:
        await client.connect()
    except WseError as error:
        print(f"{device} is turned away:", error.code)
    else:
        print(f"{device} is let in; connected:", *server.clients)
        await client.close()


async def main() -> None:
    async with make_server() as server:
        await attempt(server, "sensor-1", DEVICE_KEYS["sensor-1"])
        await attempt(server, "sensor-2", b"not the key of sensor-2")
        await attempt(server, "sensor-3", DEVICE_KEYS["sensor-1"])


if __name__ == "__main__":
    asyncio.run(main())
