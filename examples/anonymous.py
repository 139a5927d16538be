"""Anonymous clients: the server accepts everybody, each client under a random id.

Run:    python examples/anonymous.py
Shows:  an identify handler that accepts everyone, the welcome payload, and a broadcast.
"""

import asyncio
import secrets

from wse import Handshake, WseClient, WseConnection, WseServer


def make_server() -> WseServer:
    server = WseServer(port=0)

    @server.identify
    def identify(auth: Handshake) -> None:
        cid = f"guest-{secrets.token_hex(4)}"
        auth.accept(cid, {"you": cid, "others": len(server.clients)})

    @server.channel.on("shout")
    def shout(conn: WseConnection, text: str) -> None:
        server.broadcast("shout", text.upper())

    return server


async def main() -> None:
    async with make_server() as server:
        first, second = WseClient(server.url), WseClient(server.url)

        welcome = await first.connect()
        print("the first guest is let in, others there:", welcome["others"])
        welcome = await second.connect()
        print("the second guest is let in, others there:", welcome["others"])

        heard: asyncio.Queue[str] = asyncio.Queue()
        second.channel.on("shout", heard.put_nowait)
        first.send("shout", "hello")
        print("the second guest hears:", await heard.get())

        await first.close()
        await second.close()


if __name__ == "__main__":
    asyncio.run(main())
