"""JSON Web Tokens: the server checks the signature and the expiry, and needs no database.

Run:    pip install pyjwt && python examples/jwt_auth.py
Shows:  a valid token is accepted under its subject; an expired token and a forged one are refused.
"""

import asyncio
import secrets
import time

import jwt

from wse import Handshake, WseClient, WseError, WseServer

KEY = secrets.token_bytes(32)  # shared with the issuer of the tokens


def issue(user: str, lifetime: float, key: bytes = KEY) -> str:
    """Issue a token, as the login page of an application would."""
    return jwt.encode({"sub": user, "exp": time.time() + lifetime}, key, algorithm="HS256")


def make_server() -> WseServer:
    server = WseServer(port=0)

    @server.identify
    def identify(auth: Handshake) -> None:
        try:
            # Name the algorithm: the token must not choose how it is checked.
            claims = jwt.decode(auth.identity, KEY, algorithms=["HS256"], options={"require": ["sub", "exp"]})
        except jwt.InvalidTokenError as error:
            print("  server: refused,", type(error).__name__)
            auth.refuse()
            return
        auth.accept(claims["sub"], {"until": claims["exp"]})

    return server


async def attempt(url: str, what: str, token: str) -> None:
    print(what)
    client = WseClient(url, identity=token)
    try:
        welcome = await client.connect()
    except WseError as error:
        print("  client:", error.code)
    else:
        print("  client: welcome, for another", round(welcome["until"] - time.time()), "seconds")
        await client.close()


async def main() -> None:
    async with make_server() as server:
        await attempt(server.url, "a valid token", issue("ada", 60))
        await attempt(server.url, "an expired token", issue("ada", -60))
        await attempt(server.url, "a token signed by somebody else", issue("ada", 60, secrets.token_bytes(32)))


if __name__ == "__main__":
    asyncio.run(main())
