"""Ours: the public API only. usage: wse_server.py PORT [uvloop]"""

import asyncio
import sys
from itertools import count

from wse import WseServer


async def main(port):
    numbers = count(1)

    def identify(auth):
        if auth.identity == "secret":
            auth.accept(f"user{next(numbers)}")
        else:
            auth.refuse()

    server = WseServer(identify, port=port)
    server.register("echo", lambda conn, payload: payload)
    server.channel.on("fan", lambda conn, payload: server.broadcast("fan", payload))
    await server.serve_forever()


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(int(sys.argv[1])))
    else:
        asyncio.run(main(int(sys.argv[1])))
