"""A bare JSON echo on picows: no authentication, no calls, one write a message. usage: picows_server.py PORT"""

import asyncio
import sys

import msgspec
from picows import WSListener, WSMsgType, ws_create_server

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode
TEXT = WSMsgType.TEXT
transports = set()


class Echo(WSListener):
    def on_ws_connected(self, transport):
        transports.add(transport)

    def on_ws_disconnected(self, transport):
        transports.discard(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type is not TEXT:
            return
        message = decode(frame.get_payload_as_memoryview())
        answer = encode(message)
        if message[0] == "fan":
            for each in transports:
                each.send(TEXT, answer)
        else:
            transport.send(TEXT, answer)


async def main(port):
    server = await ws_create_server(lambda request: Echo(), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
