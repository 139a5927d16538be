"""Tokens: the client sends a token that it has got before, and the server looks up its user.

Run:    python examples/token_auth.py
Shows:  a known token is accepted, an unknown one is refused, and what the client gets in each case.
"""

import asyncio

from wse import ErrorCode, Handshake, WseClient, WseError, WseServer

USERS_BY_TOKEN = {"t-4711": "ada", "t-0815": "grace"}


def make_server() -> WseServer:
    server = WseServer(port=0)

    @server.identify
    def identify(auth: Handshake) -> None:
        # The identity can be anything that the client sends: check its type before using it.
        token = auth.identity.get("token") if isinstance(auth.identity, dict) else None
        user = USERS_BY_TOKEN.get(token) if isinstance(token, str) else None
        if user is None:
            auth.refuse()
        else:
            auth.accept(user, {"hello": user})

    return server


async def main() -> None:
    async with make_server() as server:
        client = WseClient(server.url, identity={"token": "t-4711"})
        print("with a known token, the welcome is:", await client.connect())
        print("the server knows:", list(server.clients))
        await client.close()

        stranger = WseClient(server.url, identity={"token": "guessed"})
        try:
            await stranger.connect()
        except WseError as error:
            if error.code != ErrorCode.NOT_AUTHORIZED:
                raise  # for example, no server is running
            print("with an unknown token:", error)


if __name__ == "__main__":
    asyncio.run(main())
