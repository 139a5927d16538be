"""WSE, with its public API only. usage: wse_server.py PORT [uvloop] [BROKER]"""

import asyncio
import sys
import time
from itertools import count

from wse import WseServer


async def main(port, broker):
    numbers = count(1)

    def identify(auth):
        secret, _, user = auth.identity.partition(":")
        if secret == "secret":
            auth.accept(user or f"user{next(numbers)}")
        else:
            auth.refuse()

    server = WseServer(identify, port=port, broker=broker)
    server.register("echo", lambda conn, payload: payload)
    server.channel.on("fan", lambda conn, payload: server.broadcast("fan", payload))
    server.channel.on("more", send_items)
    server.register("items", items)
    server.channel.on("pass", lambda conn, payload: server.send(payload["to"], "passed", payload))
    if broker:
        watch(server)
    await server.serve_forever()


def send_items(conn, number):
    """Plain messages, as many as the client has asked for."""
    sent = conn.data.get("sent", 0)
    conn.data["sent"] = sent + number
    for n in range(sent, sent + number):
        conn.send("item", {"a": 5, "b": 3, "n": n})


async def items(conn, payload):
    """The same as a stream."""
    for n in count():
        yield {"a": 5, "b": 3, "n": n}


def watch(server):
    """The procedures with which bench/cluster.py asks a node for its state."""
    left = []

    @server.register("left")
    def count_left(conn, payload):
        return {"count": len(left), "last": left[-1] if left else None}

    @server.register("online")
    async def online(conn, payload):
        return await server.online()

    server.when.left(lambda identity, code, reason: left.append(time.monotonic()))


if __name__ == "__main__":
    broker = next((argument for argument in sys.argv[2:] if argument != "uvloop"), None)
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(int(sys.argv[1]), broker))
    else:
        asyncio.run(main(int(sys.argv[1]), broker))
