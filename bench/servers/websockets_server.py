"""A bare JSON echo on `websockets`: no authentication, no calls. usage: websockets_server.py PORT"""

import asyncio
import json
import sys

from websockets.asyncio.server import broadcast, serve


async def handler(websocket):
    sent = 0
    async for text in websocket:
        message = json.loads(text)
        if message[0] == "more":
            for n in range(sent, sent + message[1]):
                await websocket.send(json.dumps(["item", {"a": 5, "b": 3, "n": n}, None]))
            sent += message[1]
            continue
        answer = json.dumps(message)
        if message[0] == "fan":
            broadcast(websocket.server.connections, answer)
        else:
            await websocket.send(answer)


async def main(port):
    async with serve(handler, "127.0.0.1", port, backlog=2048) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
