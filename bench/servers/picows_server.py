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
    sent = 0

    def on_ws_connected(self, transport):
        transports.add(transport)

    def on_ws_disconnected(self, transport):
        transports.discard(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type is not TEXT:
            return
        message = decode(frame.get_payload_as_memoryview())
        if message[0] == "more":
            self.send_items(transport, message[1])
            return
        answer = encode(message)
        if message[0] == "fan":
            for each in transports:
                each.send(TEXT, answer)
        else:
            transport.send(TEXT, answer)

    def send_items(self, transport, number):
        for n in range(self.sent, self.sent + number):
            transport.send(TEXT, encode(["item", {"a": 5, "b": 3, "n": n}, None]))
        self.sent += number


async def main(port):
    server = await ws_create_server(lambda request: Echo(), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
