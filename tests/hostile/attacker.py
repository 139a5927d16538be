"""A process that does a server harm, until a line comes in: `attacker.py ATTACK PORT`.

It prints `attacking` when the attack is in full swing. The attacks are bounded, so that what is measured is what the
server makes of them and not which process the machine gives its time to; for the same reason this one is nice.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
import zlib
from contextlib import suppress
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counts import raise_file_limit
from wse.transports.picows.frames import masked_frame

TEXT, TEXT_DEFLATED, TEXT_BEGINS, PING = 0x81, 0xC1, 0x01, 0x89
numbers = count()


def request(**headers):
    lines = [
        "GET / HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Protocol: wse-default-json",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def message(type, payload=None, stamp=None):
    return masked_frame(json.dumps([type, payload, stamp]).encode(), TEXT)


def hi(**offers):
    return message("~wse:hi", {"identity": f"attacker{next(numbers)}", "meta": {}, "ext": offers})


class Enemy:
    """One connection. `send` drops what the server does not take, frame by frame; `alive` tells whether it was cut."""

    def __init__(self, port, *, reads=True):
        self.port = port
        self.reads = reads
        self.alive = False
        self.socket = None
        self.rest = b""  # of what has been sent in part

    async def open(self, data=b""):
        self.close()
        self.rest = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        if not self.reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(self.socket, ("127.0.0.1", self.port))
            await loop.sock_sendall(self.socket, data)
        except OSError:
            return self
        self.alive = True
        return self

    async def join(self, offers=None, **headers):
        """Become a user, who offers these extensions."""
        await self.open(request(**headers))
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            async with asyncio.timeout(10):
                heard = b""
                while b"\r\n\r\n" not in heard:
                    heard += (data := await loop.sock_recv(self.socket, 4096))
                    if not data:
                        raise ConnectionResetError
                await loop.sock_sendall(self.socket, hi(**(offers or {})))
                while b"welcome" not in heard:
                    heard += (data := await loop.sock_recv(self.socket, 4096))
                    if not data:
                        raise ConnectionResetError
            return self
        self.alive = False
        return self

    def send(self, data):
        """As much as the socket takes now; what is left of it comes in place of the next."""
        if self.reads:
            self.discard()
        data = self.rest or data
        try:
            self.rest = data[self.socket.send(data) :]
        except BlockingIOError:
            pass
        except OSError:
            self.alive = False

    def discard(self):
        try:
            while data := self.socket.recv(1 << 20):
                pass
            if not data:
                self.alive = False
        except BlockingIOError:
            pass
        except OSError:
            self.alive = False

    def close(self):
        if self.socket is not None:
            self.socket.close()


async def enemies(number, port, *, reads=True, **headers):
    return [await Enemy(port, reads=reads).join(**headers) for _ in range(number)]


async def repeat(attackers, make, pause, attacking, **headers):
    """All of them send again and again; who was cut returns as somebody else."""
    while True:
        for attacker in attackers:
            if attacker.alive:
                attacker.send(make())
            else:
                await attacker.join(**headers)
        attacking()
        await asyncio.sleep(pause)


async def slowloris(port, attacking):
    """An HTTP request that never ends."""
    attackers = [await Enemy(port).open(b"GET / HTTP/1.1\r\nX: ") for _ in range(500)]
    while True:
        for attacker in attackers:
            if attacker.alive:
                attacker.send(b"x")
            else:
                await attacker.open(b"GET / HTTP/1.1\r\nX: ")
        attacking()
        await asyncio.sleep(0.2)


async def half_open(port, attacking):
    """Connections without a request."""
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(10_000)]
    attacking()
    await asyncio.Event().wait()
    assert sockets  # held until then


async def never_reading(port, attacking):
    """Calls whose answers nobody takes."""
    calls = message("echo", "x" * 40_000, 1) * 4
    await repeat(await enemies(5, port, reads=False), lambda: calls, 0.02, attacking)


async def one_byte_a_second(port, attacking):
    """A large message, byte by byte: by users, and by strangers."""
    head = masked_frame(b"x" * 100_000, TEXT)[:14]
    users = await enemies(100, port)
    strangers = [await Enemy(port).open(request()) for _ in range(100)]
    for attacker in users + strangers:
        attacker.send(head)
    await repeat(users + strangers, lambda: b"x", 1, attacking)


async def ping_flood(port, attacking):
    """Pings, half of them by who reads the pongs and half by who does not."""
    pings = masked_frame(b"x" * 125, PING) * 50
    attackers = await enemies(5, port) + await enemies(5, port, reads=False)
    await repeat(attackers, lambda: pings, 0.02, attacking)


async def unbounded_flood(port, attacking):
    """Pings as small as can be, as fast as the server takes them."""
    pings = masked_frame(b"", PING) * 40_000
    await repeat(await enemies(3, port), lambda: pings, 0.005, attacking)


async def empty_fragments(port, attacking):
    """A message of fragments with nothing in them, that never ends."""
    attackers = await enemies(5, port)
    for attacker in attackers:
        attacker.send(masked_frame(b"[", TEXT_BEGINS))
    fragments = masked_frame(b"", 0x00) * 100
    await repeat(attackers, lambda: fragments, 0.02, attacking)


async def giant_messages(port, attacking):
    """Messages just below the limit, and frames above it."""
    largest = message("say", list(range(100_000)))
    above = masked_frame(b"x" * (1024 * 1024 + 1), TEXT)
    assert 600_000 < len(largest) < 1024 * 1024

    async def send(enemy, data):
        await enemy.join()
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(enemy.socket, data)
        enemy.close()

    while True:
        await send(Enemy(port), largest)
        await send(Enemy(port), above)
        attacking()
        await asyncio.sleep(0.2)


async def deep_nesting(port, attacking):
    """Arrays in arrays: too deep for the limit, and too deep for any decoder."""
    deep = [message("say", json.loads("[" * depth + "]" * depth)) for depth in (101, 900)]
    deep.append(masked_frame(b'["say",' + b"[" * 100_000 + b"]" * 100_000 + b"]", TEXT))
    turn = count()
    await repeat(await enemies(10, port), lambda: deep[next(turn) % 3], 0.05, attacking)


async def compression_bombs(port, attacking):
    """A KiB that inflates to a MiB, or to 100."""
    headers = {"Sec_WebSocket_Extensions": "permessage-deflate"}

    def bomb(size):
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = deflater.compress(b'["say","' + b"x" * size + b'"]') + deflater.flush(zlib.Z_SYNC_FLUSH)
        return masked_frame(data[:-4], TEXT_DEFLATED)

    bombs = [bomb(1_000_000), bomb(100_000_000)]
    turn = count()
    await repeat(await enemies(5, port, **headers), lambda: bombs[next(turn) % 2], 0.1, attacking, **headers)


async def call_flood(port, attacking):
    """Calls of procedures that take their time, more than may run."""
    stamps = count(1)
    calls = [b"".join(message("slow", None, next(stamps)) for _ in range(40)) for _ in range(200)]
    turn = count()
    await repeat(await enemies(5, port), lambda: calls[next(turn) % 200], 0.02, attacking)


async def stamp_reuse(port, attacking):
    """The same stamp for all calls, at once."""
    calls = message("slow", None, 1) * 20 + message("echo", None, 1) * 20
    await repeat(await enemies(5, port), lambda: calls, 0.02, attacking)


async def forged_answers(port, attacking):
    """Answers to calls that were never made, or to those of others."""
    stamps = [*range(1, 30), "1", "__proto__", [1], {"a": 1}, 1.5, True, -1, 10**30]
    forged = b"".join(
        message(kind, {"code": "forged"}, stamp) for stamp in stamps for kind in ("~wse:response", "~wse:response-err")
    )
    await repeat(await enemies(5, port), lambda: forged, 0.02, attacking)


async def reconnect_storm(port, attacking):
    """Coming, and going without a word."""
    while True:
        for attacker in [await Enemy(port).open(request()) for _ in range(5)]:
            attacker.close()
        for attacker in await enemies(5, port):
            attacker.close()
        attacking()
        await asyncio.sleep(0.02)


async def failing_handshakes(port, attacking):
    """What is no WebSocket, no WSE, or nobody who may come in."""
    refused = [
        request() + masked_frame(b"no JSON", TEXT),
        request() + message("say", "before hi"),
        request() + message("~wse:hi", {"identity": None}),
        request() + message("~wse:hi", {"identity": "x" * 70_000}),
        request() + masked_frame(b"", 0xF3),
        request(Sec_WebSocket_Key="short"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    ]
    while True:
        attackers = [await Enemy(port).open(data) for data in refused]
        attacking()
        await asyncio.sleep(0.02)
        for attacker in attackers:
            attacker.close()


def post(size, body, **headers):
    lines = [
        "POST /api/broadcast HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {size}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def api_and_metrics(port, attacking):
    """The HTTP API with wrong keys, from web pages and with bodies that never come; metrics without end."""
    body = json.dumps({"type": "<script>alert(1)</script>", "payload": "x" * 10_000}).encode()
    asked = [
        post(len(body), body, Authorization="Bearer guess"),
        post(len(body), body, Origin="https://evil.example", Authorization="Bearer guess"),
        post(10**12, b"", Authorization="Bearer guess"),
        post(len(body), body.replace(b"application/json", b"text/plain")),
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    unfinished = [Enemy(port) for _ in range(40)]
    while True:
        for attacker in unfinished:
            if attacker.alive:
                attacker.discard()
            if not attacker.alive:
                await attacker.open(post(len(body), body[:-1], Authorization="Bearer guess"))
        attackers = [await Enemy(port).open(data) for data in asked]
        attacking()
        await asyncio.sleep(0.02)
        for attacker in attackers:
            attacker.close()


async def operations_page(port, attacking):
    """The operations page with wrong keys and from web pages, with markup for a name; strangers who stay; the page
    itself without end."""
    key = masked_frame(json.dumps(["~wse:hi", {"identity": {"name": "<script>", "key": "guess"}}]).encode(), TEXT)
    call = message("drop-user", {"user": "shonest0"}, 1)
    opening = request().replace(b"GET / ", b"GET /admin ")
    evil = request(Origin="https://evil.example").replace(b"GET / ", b"GET /admin/ ")
    asked = [
        opening + key + call,
        opening + call,
        evil + key + call,
        b"GET /admin/console.js HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /admin HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nname=eve&",
    ]
    silent = [Enemy(port) for _ in range(30)]  # more than one address may have
    while True:
        for attacker in silent:
            if attacker.alive:
                attacker.discard()
            if not attacker.alive:
                await attacker.open(opening)
        attackers = [await Enemy(port).open(data) for data in asked]
        attacking()
        await asyncio.sleep(0.02)
        for attacker in attackers:
            attacker.close()


async def never_acking(port, attacking):
    """Sessions that are to be kept, of clients that take everything and confirm nothing, or what was never sent."""
    calls = message("echo", "x" * 10_000, 1) * 4
    forged = message("~wse:ack", 2**53)
    turn = count()
    attackers = [await Enemy(port).join({"resume": {}}) for _ in range(20)]

    def more():
        return forged if next(turn) % 200 == 199 else calls

    await repeat(attackers, more, 0.02, attacking, offers={"resume": {}})


async def ghosts(port, attacking):
    """Users who ask for their session to be kept, leave without a word, and return as others with forged claims."""
    answers = message("echo", "x" * 10_000, 1) * 4
    while True:
        for _ in range(5):
            attacker = await Enemy(port).join({"resume": {}})
            attacker.send(answers)
            attacker.close()
        claims = [
            {"id": "0" * 16, "key": "A" * 22, "got": 2**53 - 1, "sent": [1, 2**53 - 1]},
            {"id": "x" * 10_000, "key": [], "got": -1, "sent": {}},
        ]
        for claim in claims:
            attacker = await Enemy(port).join({"resume": claim})
            attacker.send(message("~wse:gap", 2**53 - 1))
            attacker.close()
        attacking()
        await asyncio.sleep(0.02)


CALLS = {"calls": {"timeout": 20}}


def stream(name, stamp, payload=None, **options):
    return message("~wse:call", [name, payload, options], stamp)


async def greedy_readers(port, attacking):
    """Streams without end, with all the credit that there is, of clients that take nothing; more than they may have."""
    turn = count(1)
    attackers = [await Enemy(port, reads=False).join(CALLS) for _ in range(20)]

    def more():
        stamp = next(turn)
        opened = stream("endless", stamp, "x" * 10_000, t=0, n=2**31)
        return opened + message("~wse:more", 2**31, stamp) + message("~wse:more", -1, stamp)

    await repeat(attackers, more, 0.02, attacking, offers=CALLS)


async def streams_left(port, attacking):
    """Streams that are cancelled at once, twice, and as if they were others; whose generators raise, or do not end."""
    turn = count(1)
    names = ["endless", "stubborn", "broken", "echo", "nothing"]
    attackers = [await Enemy(port).join(CALLS) for _ in range(10)]

    def more():
        stamps = [next(turn) for _ in range(20)]
        opened = b"".join(stream(names[stamp % 5], stamp, stamp, n=2 + stamp % 40) for stamp in stamps)
        left = [stamp for stamp in stamps if names[stamp % 5] != "broken"]
        left = b"".join(message("~wse:cancel", None, stamp) for stamp in [*left, *left[::3], -1, 2**53])
        return opened + left

    await repeat(attackers, more, 0.02, attacking, offers=CALLS)


async def unwanted_items(port, attacking):
    """Uploads that nobody takes, beyond their credit and after their end, and items and answers of no call."""
    turn = count(1)
    attackers = [await Enemy(port).join(CALLS) for _ in range(5)]
    strange = [*range(50), "1", [1], {"a": 1}, 1.5, -1, 10**30]
    kinds = ("put", "end", "item", "want", "progress", "more", "cancel")
    unknown = b"".join(message(f"~wse:{kind}", 2**31, stamp) for stamp in strange for kind in kinds)

    def more():
        stamp = next(turn)
        if stamp % 5 == 0:
            return unknown
        item = message("~wse:put", "x" * 1000, stamp)
        return stream("swallow", stamp, t=0, up=1) + item * (40 if stamp % 2 else 30) + message("~wse:end", None, stamp)

    await repeat(attackers, more, 0.02, attacking, offers=CALLS)


async def restless_members(port, attacking):
    """Members who show others all they can, in and out of every room, too much of it, and what is no state at all."""
    turn = count(1)
    offers = {"rooms": {}, "calls": {"timeout": 20}, "resume": {}}
    attackers = [await Enemy(port, reads=number % 2 == 0).join(offers) for number in range(20)]
    strange = [None, [], ["r0"], ["r0", 1, -1], [[], 1, None], {"r0": 1}, ["r0", 1, None, 2], ["r0", 1, "x"]]

    def more():
        stamp = next(turn)
        if stamp % 50 == 0:
            return message("~wse:set", strange[stamp // 50 % len(strange)])
        room = f"r{stamp % 23}"
        entered = message("~wse:join", room, stamp) + message("~wse:join", "x" * stamp, stamp)
        shown = b"".join(message("~wse:set", [room, [stamp, n, "x" * 3000], 0.05]) for n in range(5))
        large = message("~wse:set", [room, "x" * 5000, None])
        left = message("~wse:leave", f"r{stamp % 7}", stamp) if stamp % 3 == 0 else b""
        return entered + shown + large + left + message("~wse:presence", ["r0", [["ann", "a", 1]], True])

    await repeat(attackers, more, 0.02, attacking, offers=offers)


ATTACKS = {
    attack.__name__: attack
    for attack in (
        slowloris,
        half_open,
        never_reading,
        one_byte_a_second,
        ping_flood,
        unbounded_flood,
        empty_fragments,
        giant_messages,
        deep_nesting,
        compression_bombs,
        call_flood,
        stamp_reuse,
        forged_answers,
        reconnect_storm,
        failing_handshakes,
        api_and_metrics,
        operations_page,
        never_acking,
        ghosts,
        greedy_readers,
        streams_left,
        unwanted_items,
        restless_members,
    )
}


async def main(name, port):
    raise_file_limit()
    os.nice(10)
    begun = False

    def attacking():
        nonlocal begun
        if not begun:
            begun = True
            print("attacking", flush=True)

    attack = asyncio.ensure_future(ATTACKS[name](port, attacking))
    told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.wait((attack, told), return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()
    attack.cancel()
    os._exit(0)  # every socket at once, without a word


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
