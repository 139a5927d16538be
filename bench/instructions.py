"""Counts instructions of the core path for each operation with callgrind, as these do not vary with the machine's load.

    python bench/instructions.py             compares with bench/instructions.json; status 1 if a count rose by 5 %
    python bench/instructions.py --record    writes the counts there

Counts hold for one build of the interpreter and its libraries, so the file has a record for each; without one for the
interpreter that runs this, or without valgrind, the program says so and succeeds. A count is the difference of two run
lengths in one process, divided by the difference of the lengths, so neither start-up nor warm-up is in it. What the
kernel does is not in it either.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "instructions.json"
ALLOWED = 0.05
REPEATS = 2
"""How often everything is counted again if something rose; the least counts. On a busy machine, more timers of the
event loop run meanwhile, and their work is counted as well."""

TYPED = 1.15
"""How many times the instructions of an untyped call a call may take whose payload is a msgspec Struct."""

OF_PYDANTIC = 1.10
"""How many times the instructions of pydantic itself the check of a payload may take that is a pydantic model."""

# The operations. Each function prepares one and returns `run(times)`.

PAYLOAD = '{"a":5,"b":3,"n":7}'
CALL = f'["echo",{PAYLOAD},"17"]'
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: wse-default-json\r\n\r\n"
)
RESUMABLE = '["~wse:hi",{"identity":"secret","meta":{},"ext":{"resume":{}}},null]'
ACK_EVERY = 64
STREAMING = '["~wse:hi",{"identity":"secret","meta":{},"ext":{"calls":{"timeout":20}}},null]'
GRANTED = 16  # items for which a receiver with the usual window grants credit at once
HELLO = '["~wse:hi",{"identity":"secret","meta":{}},null]'


class CountingLink:
    """A link that discards everything."""

    buffered = 0
    pings = False
    remote_addr = ""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, data: Any) -> None:
        self.writes += 1

    write_utf8 = write_shared = write

    def attach(self, session: Any) -> None:
        self.receiver = session

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code} {reason}")

    abort = close


def new_server(echo: Callable[..., Any] = lambda conn, payload: payload) -> Any:
    from wse import WseServer

    server = WseServer(lambda auth: auth.accept(auth.conn_id), port=0, auth_timeout=0)
    server._hub.started = True  # some of its connections come without a listener
    server.register("echo", echo)
    server.channel.on("chat", lambda conn, payload: None)
    return server


def new_session(server: Any, hello: str = HELLO) -> tuple[Any, CountingLink]:
    """A welcomed session, on a link that discards everything."""
    from wse.transports.request import HttpRequest

    link = CountingLink()
    session = server._acceptor.open(link, HttpRequest("/", {}, ""), server._acceptor.select(["wse-default-json"]))
    session.receive(hello)
    assert session.valid
    return session, link


def metered_server() -> Any:
    """The same, with metrics on."""
    server = new_server()
    server._metrics.start(asyncio.get_running_loop())
    return server


def message(make: Callable[[], Any] = new_server) -> Callable[[int], None]:
    """A plain message, from its text to its listener."""
    receive = new_session(make())[0].receive
    text = f'["chat",{PAYLOAD},null]'

    def run(times: int) -> None:
        for _ in range(times):
            receive(text)

    return run


def sync_call(make: Callable[[], Any] = new_server, hello: str = HELLO) -> Callable[[int], None]:
    """A call of a plain function, from its text to the answer's bytes."""
    session, link = new_session(make(), hello)

    def run(times: int) -> None:
        before = link.writes
        for _ in range(times):
            session.receive(CALL)
        assert link.writes == before + times

    return run


def typed_call() -> Callable[[int], None]:
    """The same for a function whose payload has a hint, a msgspec Struct."""
    import msgspec

    payload_type: Any = msgspec.defstruct(
        "Payload", [("a", int), ("b", int), ("n", Annotated[int, msgspec.Meta(ge=1)], 1)]
    )

    def echo(conn: Any, payload: payload_type) -> Any:
        return payload

    return sync_call(partial(new_server, echo))


def call_without_result() -> Callable[[int], None]:
    """The same for a function that returns nothing."""
    return sync_call(partial(new_server, lambda conn, payload: None))


def pydantic_model() -> Any:
    import pydantic

    return pydantic.create_model("Payload", a=int, b=int, n=(Annotated[int, pydantic.Field(ge=1)], 1))


def pydantic_call() -> Callable[[int], None]:
    """The same for a pydantic model; there is no result, as pydantic's way to JSON is not measured."""
    payload_type = pydantic_model()

    def echo(conn: Any, payload: payload_type) -> Any:
        return None

    return sync_call(partial(new_server, echo))


def pydantic_alone() -> Callable[[int], None]:
    """What pydantic itself does for such a call."""
    import pydantic

    validate = pydantic.TypeAdapter(pydantic_model()).validator.validate_python
    payload = json.loads(PAYLOAD)

    def run(times: int) -> None:
        for _ in range(times):
            validate(payload)

    return run


def async_call(hello: str = HELLO) -> Callable[[int], Any]:
    """A call of a coroutine function that does not wait, 32 in each turn of the loop."""

    async def echo(conn: Any, payload: Any) -> Any:
        return payload

    session, link = new_session(new_server(echo), hello)

    async def run(times: int) -> None:
        before = link.writes
        for _ in range(0, times, 32):
            for _ in range(32):
                session.receive(CALL)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert link.writes >= before + times

    return run


def own_call() -> Callable[[int], None]:
    """An outgoing call, and its answer."""
    session, _ = new_session(new_server())
    payload = {"a": 5, "b": 3, "n": 7}

    def run(times: int) -> None:
        for _ in range(times):
            stamp, future = session.start_call("add", payload, None)
            session.receive(f'["~wse:response",8,{stamp}]')
            assert future.result() == 8
            session.forget_call(stamp)

    return run


def sent_message() -> Callable[[int], None]:
    """A plain message of the server."""
    server = new_server()
    link = new_session(server)[1]
    (user,) = server.clients.values()
    (conn,) = user.conns.values()
    payload = {"a": 5, "b": 3, "n": 7}

    def run(times: int) -> None:
        before = link.writes
        for _ in range(times):
            conn.send("item", payload)
        assert link.writes == before + times

    return run


async def stream_item() -> Callable[[int], Any]:
    """An item of a stream, whose reader grants credit as it takes them."""
    server = new_server()
    payload = {"a": 5, "b": 3, "n": 7}

    async def items(conn: Any, argument: Any) -> Any:
        while True:
            yield payload

    server.register("items", items)
    session, link = new_session(server, STREAMING)
    session.receive('["~wse:call",["items",null,{"t":0,"n":32}],1]')
    await asyncio.sleep(0)

    async def run(times: int) -> None:
        before = link.writes
        for _ in range(0, times, GRANTED):
            session.receive(f'["~wse:more",{GRANTED},1]')
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert abs(link.writes - before - times) <= 2 * GRANTED

    return run


def broadcast(make: Callable[[], Any] = new_server) -> Callable[[int], None]:
    """A broadcast to 100 links."""
    server = make()
    links = [new_session(server)[1] for _ in range(100)]
    payload = {"a": 5, "b": 3, "n": 7}

    def run(times: int) -> None:
        before = links[99].writes
        for _ in range(times):
            server.broadcast("news", payload)
        assert links[99].writes == before + times

    return run


def resumable_message() -> Callable[[int], None]:
    """A plain message in a session that outlives its connection, acks included."""
    server = new_server()
    ledger = new_session(server, RESUMABLE)[0].ledger
    receive = ledger.receive
    text = f'["chat",{PAYLOAD},null]'

    def run(times: int) -> None:
        for number in range(times):
            receive(text)
            if number % ACK_EVERY == 0:
                ledger.send_ack()

    return run


def resumable_call() -> Callable[[int], None]:
    """A call of a plain function in such a session."""
    session, link = new_session(new_server(), RESUMABLE)
    receive = session.ledger.receive

    def run(times: int) -> None:
        before = link.writes
        for number in range(times):
            receive(CALL)
            if number % ACK_EVERY == 0:
                receive(f'["~wse:ack",{session.ledger.out},null]')
        assert link.writes >= before + times

    return run


def resumable_broadcast() -> Callable[[int], None]:
    """A broadcast to 100 such sessions."""
    server = new_server()
    sessions = [new_session(server, RESUMABLE) for _ in range(100)]
    payload = {"a": 5, "b": 3, "n": 7}

    def run(times: int) -> None:
        before = sessions[99][1].writes
        for number in range(times):
            server.broadcast("news", payload)
            if number % ACK_EVERY == 0:
                for session, _ in sessions:
                    session.ledger.receive(f'["~wse:ack",{session.ledger.out},null]')
        assert sessions[99][1].writes >= before + times

    return run


class NoSocket:
    """What is asked of a socket before anything is read from it."""

    family = socket.AF_INET

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: Any) -> None: ...

    def getsockopt(self, *_: Any) -> int:
        return 0


class NoTransport:
    """A transport for picows that discards everything."""

    def __init__(self) -> None:
        self.written = 0
        self.protocol: Any = None  # that of the WebSocket

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": NoSocket(), "peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: Any) -> None:
        self.written += len(data)

    def close(self) -> None: ...

    abort = close

    def is_closing(self) -> bool:
        return False


async def protocols(server: Any) -> Callable[[], Any]:
    """Makes the protocol of each connection for a server that listens without a socket."""
    import aiofastnet

    made: list[Callable[[], Any]] = []

    async def create_server(loop: Any, new_protocol: Callable[[], Any], *_: Any, **__: Any) -> Any:
        made.append(new_protocol)
        return argparse.Namespace(sockets=(), close=lambda: None)

    was, aiofastnet.create_server = aiofastnet.create_server, create_server
    try:
        await server.start()
    finally:
        aiofastnet.create_server = was
    return made[0]


def masked(text: str) -> bytes:
    """A client's frame."""
    data = text.encode()
    mask = b"\x37\xfa\x21\x3d"
    head = bytes((0x81, 0x80 | len(data))) if len(data) < 126 else bytes((0x81, 0xFE, 0, len(data)))
    return head + mask + bytes(byte ^ mask[i & 3] for i, byte in enumerate(data))


def feed(protocol: Any, data: bytes) -> None:
    """Deliver bytes as from one read of the socket."""
    protocol.get_buffer(-1)[: len(data)] = data
    protocol.buffer_updated(len(data))


def opened(new_protocol: Callable[[], Any]) -> tuple[Any, NoTransport]:
    """A welcomed connection of picows."""
    transport = NoTransport()
    http = new_protocol()
    http.connection_made(transport)
    http.data_received(REQUEST)
    protocol = transport.protocol
    feed(protocol, masked(HELLO))
    return protocol, transport


async def frame() -> Callable[[int], None]:
    """A call through picows, one in a read, from the frame's bytes to the answer's bytes."""
    protocol, transport = opened(await protocols(new_server()))
    data = masked(CALL)

    def run(times: int) -> None:
        before = transport.written
        for _ in range(times):
            feed(protocol, data)
        assert transport.written > before + 20 * times

    return run


async def frames() -> Callable[[int], None]:
    """The same with 32 in a read; the count is for each call."""
    protocol, transport = opened(await protocols(new_server()))
    data = masked(CALL) * 32

    def run(times: int) -> None:
        before = transport.written
        for _ in range(0, times, 32):
            feed(protocol, data)
        assert transport.written > before + 20 * times

    return run


async def picows_broadcast() -> Callable[[int], Any]:
    """A broadcast to 100 connections of picows, and the turn of the loop in which it leaves."""
    server = new_server()
    new_protocol = await protocols(server)
    connections = [opened(new_protocol) for _ in range(100)]
    payload = {"a": 5, "b": 3, "n": 7}

    async def run(times: int) -> None:
        before = connections[99][1].written
        for _ in range(times):
            server.broadcast("news", payload)
            await asyncio.sleep(0)
        assert connections[99][1].written > before + 20 * times

    return run


async def connection() -> Callable[[int], Any]:
    """A connection through picows: the upgrade, the handshake, the end."""
    server = new_server()
    new_protocol = await protocols(server)

    async def run(times: int) -> None:
        for _ in range(times):
            protocol, _ = opened(new_protocol)
            await asyncio.sleep(0)
            assert len(server.clients) == 1
            protocol.connection_lost(None)
            await asyncio.sleep(0)
            assert not server.clients

    return run


OPERATIONS: dict[str, tuple[Callable[[], Any], int]] = {
    "message": (message, 960),
    "sync call": (sync_call, 960),
    "sync call, payload typed": (typed_call, 960),
    "sync call, no result": (call_without_result, 960),
    "sync call, payload of pydantic": (pydantic_call, 960),
    "pydantic alone": (pydantic_alone, 960),
    "async call": (async_call, 960),
    "own call": (own_call, 960),
    "calls: sync call": (lambda: sync_call(hello=STREAMING), 960),
    "calls: async call": (lambda: async_call(hello=STREAMING), 960),
    "sent message": (sent_message, 960),
    "item of a stream": (stream_item, 960),
    "broadcast to 100": (broadcast, 60),
    "resume: message": (resumable_message, 960),
    "resume: sync call": (resumable_call, 960),
    "resume: broadcast to 100": (resumable_broadcast, 192),
    "metrics: message": (partial(message, metered_server), 960),
    "metrics: sync call": (partial(sync_call, metered_server), 960),
    "metrics: broadcast to 100": (partial(broadcast, metered_server), 60),
    "picows: call": (frame, 960),
    "picows: 32 calls in a read, each": (frames, 960),
    "picows: broadcast to 100": (picows_broadcast, 60),
    "picows: connection": (connection, 60),
}

# Inside valgrind.

LONG = 3  # the longer run, in lengths of the shorter one


async def work() -> None:
    """Every operation: a warm-up, a short and a long run, each between two marks."""
    # callgrind writes and resets its counts at each call of this C function, which has no other callers.
    mark = os.getppid
    for prepare, times in OPERATIONS.values():
        run = prepare()
        if inspect.isawaitable(run):
            run = await run
        gc.collect()
        gc.disable()  # a collection of everything falls into the one count or the other
        for length in (times, times, LONG * times):
            mark()
            result = run(length)
            if result is not None:
                await result
        mark()


def counts_of(dumps: list[int]) -> dict[str, int]:
    """Instructions for each operation.

    Args:
        dumps: The counts before each mark.
    """
    assert len(dumps) == 4 * len(OPERATIONS), f"callgrind wrote {len(dumps)} parts"
    counts = {}
    for index, (name, (_, times)) in enumerate(OPERATIONS.items()):
        _, _, short, long = dumps[4 * index : 4 * index + 4]
        counts[name] = round((long - short) / ((LONG - 1) * times))
    return counts


# Outside.


def count(valgrind: str) -> dict[str, int]:
    """Run `work` in valgrind.

    Raises:
        RuntimeError: It fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", "--dump-before=getppid"]
        variables = {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(HERE.parent / "src"),
            "PATH": os.environ.get("PATH", ""),
            # Else a heap whose end happens to lie at a large buffer grows and shrinks with every connection.
            "MALLOC_TOP_PAD_": str(64 * 1024 * 1024),
            "MALLOC_TRIM_THRESHOLD_": str(1024 * 1024 * 1024),
        }
        command += [sys.executable, "-X", "utf8", __file__, "--work"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-2000:])
        files = [out.with_name(f"out.{number}") for number in range(1, 4 * len(OPERATIONS) + 1)]
        return counts_of([total(file) for file in files])


def total(file: Path) -> int:
    """The instructions in one of callgrind's files."""
    lines = (line for line in file.read_text().splitlines() if line.startswith("totals:"))
    return int(next(lines).split()[1])


def build() -> dict[str, str]:
    """The build of Python and its libraries for which the counts hold."""
    made = f"{sysconfig.get_config_var('CONFIG_ARGS')} {platform.python_compiler()} {sys.version}"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "made": hashlib.sha256(made.encode()).hexdigest()[:12],
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        **{name: importlib.metadata.version(name) for name in ("msgspec", "picows")},
    }


def find(records: list[dict[str, Any]], which: dict[str, str]) -> dict[str, int] | None:
    """The recorded counts of a build."""
    return next((record["counts"] for record in records if record["build"] == which), None)


def put(records: list[dict[str, Any]], which: dict[str, str], counts: dict[str, int]) -> list[dict[str, Any]]:
    """The records with those of one build, in place of older ones for the same interpreter."""
    same = ("python", "made", "machine")
    kept = [record for record in records if any(record["build"][name] != which[name] for name in same)]
    return sorted([*kept, {"build": which, "counts": counts}], key=lambda record: str(record["build"]))


def compare(counts: dict[str, int], recorded: dict[str, int]) -> tuple[list[str], bool]:
    """A line for each operation, and whether a count rose by more than is allowed."""
    lines, failed = [], False
    for name, now in counts.items():
        was = recorded.get(name)
        if was is None:
            lines.append(f"{name:34} {now:9,} instructions, not recorded")
            continue
        change = now / was - 1
        verdict = ""
        if change > ALLOWED:
            failed, verdict = True, f"  ROSE by more than {ALLOWED:.0%}"
        elif change < -ALLOWED:
            verdict = "  fell: record it"
        lines.append(f"{name:34} {now:9,} instructions, {was:9,} recorded, {change:+.1%}{verdict}")
    return lines, failed


def typed(counts: dict[str, int]) -> tuple[list[str], bool]:
    """Lines about calls whose payloads have hints, and whether one costs more than it may."""
    struct = counts["sync call, payload typed"] / counts["sync call"]
    check = counts["sync call, payload of pydantic"] - counts["sync call, no result"]
    model = check / counts["pydantic alone"]
    lines = []
    for text, ratio, most in (
        ("a call with a msgspec payload costs {:.2f} times one without a hint", struct, TYPED),
        ("the check of a pydantic payload costs {:.2f} times pydantic alone", model, OF_PYDANTIC),
    ):
        lines.append(text.format(ratio) + (f"  MORE than {most:.2f}" if ratio > most else ""))
    return lines, struct > TYPED or model > OF_PYDANTIC


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the counts to bench/instructions.json")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        gc.disable()
        asyncio.run(work())
        return 0
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("instructions: not counted, valgrind is not installed")
        return 0
    records: list[dict[str, Any]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else []
    which = build()
    recorded = find(records, which)
    if recorded is None and not args.record:
        print(f"instructions: not compared, none are recorded for this build: {' '.join(which.values())}")
        return 0
    counts = count(valgrind)
    if args.record:
        BASELINE.write_text(json.dumps(put(records, which, counts), indent=1) + "\n")
        recorded = counts
    assert recorded is not None  # or it has returned
    for repeat in range(REPEATS + 1):
        lines, rose = compare(counts, recorded)
        more, costs = typed(counts)
        failed = rose or costs
        if not failed or args.record or repeat == REPEATS:
            break
        counts = {name: min(now, counts[name]) for name, now in count(valgrind).items()}
    print("\n".join((*lines, *more)))
    return 1 if failed and not args.record else 0


if __name__ == "__main__":
    sys.exit(main())
