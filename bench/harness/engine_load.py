"""Measures an engine's CPU for a message to every node, by the number of nodes, which are bare sockets here."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

from harness.engines import NATS, Engine
from harness.measure import HOST, BenchError

DATA = b"x" * 200
BATCH = 50
"""Messages published at once."""

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"echo":true}\r\nPING\r\n'


def cpu_of(pid: int) -> float:
    """Seconds of CPU of a process, with all its threads."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) computes it, which Python lacks


def dialogue(kind: str) -> tuple[bytes, bytes, bytes, bytes, int]:
    """The bytes that a subscriber sends, and the end of the answer; the bytes that a publisher sends first, and for
    each message; and the bytes that each subscriber receives for it."""
    if kind == NATS:
        publish = b"PUB all %d\r\n%s\r\n" % (len(DATA), DATA)
        received = b"MSG all 1 %d\r\n%s\r\n" % (len(DATA), DATA)
        return CONNECT.replace(b"PING", b"SUB all 1\r\nPING"), b"PONG\r\n", CONNECT, publish, len(received)
    publish = b"*3\r\n$7\r\nPUBLISH\r\n$3\r\nall\r\n$%d\r\n%s\r\n" % (len(DATA), DATA)
    received = b"*3\r\n$7\r\nmessage\r\n$3\r\nall\r\n$%d\r\n%s\r\n" % (len(DATA), DATA)
    return b"*2\r\n$9\r\nSUBSCRIBE\r\n$3\r\nall\r\n", b":1\r\n", b"PING\r\n", publish, len(received)


def connect(port: int, hello: bytes, welcome: bytes) -> socket.socket:
    sock = socket.create_connection((HOST, port), 10)
    sock.sendall(hello)
    heard = b""
    while not heard.endswith(welcome):
        some = sock.recv(4096)
        if not some:
            raise BenchError(f"the engine hangs up: {heard[-100:]!r}")
        heard += some
    return sock


def broadcast_cost(kind: str, engine: Engine, nodes: int, messages: int) -> float:
    """Seconds of the engine's CPU for one message to so many nodes.

    Raises:
        BenchError: It does not deliver.
    """
    port = int(engine.url.rpartition(":")[2])
    hello, welcome, first, publish, size = dialogue(kind)
    with contextlib.ExitStack() as stack:
        subscribers = [stack.enter_context(connect(port, hello, welcome)) for _ in range(nodes)]
        publisher = stack.enter_context(connect(port, first, b"PONG\r\n"))
        selector = stack.enter_context(selectors.DefaultSelector())
        for sock in (*subscribers, publisher):
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, sock is publisher)
        before = cpu_of(engine.pid)
        for _ in range(messages // BATCH):
            publisher.sendall(publish * BATCH)
            awaited = nodes * size * BATCH
            while awaited > 0:
                ready = selector.select(10)
                if not ready:
                    raise BenchError(f"{kind} has not delivered {awaited} bytes")
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    got = len(key.fileobj.recv(1 << 18))
                    awaited -= 0 if key.data else got
        return (cpu_of(engine.pid) - before) / (messages // BATCH * BATCH)
