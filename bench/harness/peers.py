"""The servers, clients and workloads that are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A server.

    Attributes:
        name: Its short name, for `--peers`.
        title: Its name in tables.
        kind: `floor`, `ours`, `python` or `node`.
        dialect: The protocol that load/load.c uses.
        command: The program in servers/ and its further arguments.
        needs: The Python modules or Node packages that it requires.
        note: A remark for the comparison.
        only: The workloads that it is measured with; empty for all but `never` and those of `TYPED`.
        never: Those that it cannot do.
        also: Those of `TYPED` that it is measured with.
    """

    name: str
    title: str
    kind: str
    dialect: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    note: str = ""
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def does(self, work: Workload) -> bool:
        """Whether it is measured with that workload."""
        if work.kind and self.kind != work.kind:
            return False
        if self.only:
            return work.name in self.only
        return work.name in self.also or work.name not in (*self.never, *TYPED)


FLOOR = "floor"

TYPED = ("typed-1", "typed-32")
"""Workloads that compare servers which check what a handler takes and returns."""

UVICORN = ("uvicorn", "websockets", "httptools", "uvloop")

PEERS = (
    Peer(FLOOR, "C floor", "floor", "wse", (), note="moves bytes, parses no JSON", never=("items-32",)),
    Peer("wse", "wse", "ours", "wse", ("wse_server.py",), ("msgspec", "picows"), also=TYPED),
    Peer("wse-uvloop", "wse, uvloop", "ours", "wse", ("wse_server.py", "uvloop"), ("msgspec", "picows", "uvloop")),
    Peer(
        "wse-stream",
        "wse, a stream",
        "ours",
        "wse-stream",
        ("wse_server.py",),
        ("msgspec", "picows"),
        "the items are those of an async generator, which the credit of the client drives",
        only=("items-32",),
    ),
    Peer(
        "wse-resume",
        "wse, sessions that resume",
        "ours",
        "wse-resume",
        ("wse_server.py",),
        ("msgspec", "picows"),
        "each side counts messages, keeps them until they are confirmed, and confirms what it gets",
    ),
    Peer(
        "wse-msgspec",
        "wse, a typed handler",
        "ours",
        "wse",
        ("wse_typed_server.py", "msgspec"),
        ("msgspec", "picows", "pydantic"),
        "payload and result are Structs of msgspec",
        only=TYPED,
    ),
    Peer(
        "wse-pydantic",
        "wse, a typed handler, pydantic",
        "ours",
        "wse",
        ("wse_typed_server.py", "pydantic"),
        ("msgspec", "picows", "pydantic"),
        "payload and result are models of pydantic",
        only=TYPED,
    ),
    Peer(
        "picows",
        "picows, bare echo",
        "python",
        "json",
        ("picows_server.py",),
        ("msgspec", "picows"),
        "no authentication, no calls",
    ),
    Peer(
        "websockets",
        "websockets, bare echo",
        "python",
        "json",
        ("websockets_server.py",),
        ("websockets",),
        "no authentication, no calls",
    ),
    Peer(
        "python-socketio",
        "python-socketio, uvicorn",
        "python",
        "socketio",
        ("python_socketio_server.py",),
        ("socketio", *UVICORN),
        also=TYPED,
    ),
    Peer(
        "pydantic-socketio",
        "pydantic-socketio, uvicorn",
        "python",
        "socketio",
        ("pydantic_socketio_server.py",),
        ("pydantic_socketio", *UVICORN),
        "payload and result are models of pydantic",
        only=TYPED,
    ),
    Peer(
        "chanx",
        "chanx, uvicorn",
        "python",
        "chanx",
        ("chanx_server.py",),
        ("chanx", "fast_channels", "starlette", *UVICORN),
        "messages are models of pydantic; no authentication",
        only=TYPED,
    ),
    Peer(
        "fastapi-rpc",
        "fastapi-websocket-rpc, uvicorn",
        "python",
        "fastapi-rpc",
        ("fastapi_rpc_server.py",),
        ("fastapi_websocket_rpc", *UVICORN),
        "no authentication; its fan-out is a loop in the application",
        never=("items-32",),
    ),
    Peer("ws", "ws on Node, bare echo", "node", "json", ("ws_server.cjs",), ("ws",), "no authentication, no calls"),
    Peer("socketio", "Socket.IO on Node", "node", "socketio", ("socketio_server.cjs",), ("socket.io",)),
)


@dataclass(frozen=True)
class Client:
    """A client that calls the C server: the arguments of client_calls.py."""

    name: str
    title: str
    kind: str
    command: tuple[str, ...]
    needs: tuple[str, ...]


CLIENTS = (
    Client("wse", "WseClient", "ours", ("wse",), ("msgspec", "picows")),
    Client("wse-uvloop", "WseClient, uvloop", "ours", ("wse", "uvloop"), ("msgspec", "picows", "uvloop")),
    Client("websockets", "websockets, bare", "python", ("websockets",), ("websockets",)),
)


@dataclass(frozen=True)
class Workload:
    """One kind of work.

    Attributes:
        mode: `call`, `fanout`, `items`, `idle` and `return` load a server, `client` runs a client.
        connections: The number of connections.
        window: Calls, broadcasts or items in flight; for `idle` and `return`, how many of the connections are timed.
        kind: The kind of the peers that are measured; empty for all.
    """

    name: str
    title: str
    mode: str
    connections: int
    window: int
    kind: str = ""


WORKLOADS = (
    Workload("call-1", "Call, 1 in flight on each of 50 connections", "call", 50, 1),
    Workload("call-32", "Call, 32 in flight on each of 50 connections", "call", 50, 32),
    Workload("typed-1", "Typed call, 1 in flight on each of 50 connections", "call", 50, 1),
    Workload("typed-32", "Typed call, 32 in flight on each of 50 connections", "call", 50, 32),
    Workload("fanout-1", "Fan-out to 1,000 connections, 1 broadcast in flight, per delivery", "fanout", 1000, 1),
    Workload("fanout-4", "Fan-out to 1,000 connections, 4 broadcasts in flight, per delivery", "fanout", 1000, 4),
    Workload("items-32", "Items, up to 32 on their way to each of 50 connections", "items", 50, 32),
    Workload("connect", "Connect and authenticate 5,000, then hold 10,000 idle", "idle", 10000, 5000),
    Workload("return", "All of 10,000 come back at once, after they were cut", "return", 10000, 10000, "ours"),
    Workload("client-1", "Client, 1 call in flight, against the C floor", "client", 1, 1),
    Workload("client-32", "Client, 32 calls in flight, against the C floor", "client", 1, 32),
)
