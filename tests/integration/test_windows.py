"""What Windows lacks is not needed. No such machine is at hand, so tests/support/windows.py hides it."""

import signal

import pytest

from support.programs import program

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this is Windows itself")

HIDE = "import sys; sys.path.insert(0, 'tests'); from support import windows\n"

SERVER = """
from wse import WseServer

server = WseServer(lambda auth: auth.accept("ann"), port=0)

async def say(conn):
    print("connected", flush=True)

server.when.connected(say)
"""


def test_every_module_can_be_imported():
    code = """
import importlib, pkgutil, wse
names = [module.name for module in pkgutil.walk_packages(wse.__path__, "wse.") if module.name != "wse.__main__"]
for name in names:
    importlib.import_module(name)
assert "wse.cli.supervisor" in names
print("all imported")
"""
    with program("-c", HIDE + code) as running:
        running.read_until("all imported")
        assert running.stop() == 0


def test_messages_travel_plain_and_over_tls():
    code = """
import asyncio, ssl, trustme
from wse import Compression, WseClient, WseServer

authority = trustme.CA()
ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
authority.issue_cert("127.0.0.1").configure_cert(ours)
authority.configure_trust(theirs)

async def main():
    for context in (None, ours):
        server = WseServer(lambda auth: auth.accept("ann"), port=0, ssl=context)
        server.register("echo", lambda conn, payload: payload)
        heard = asyncio.Queue()
        async with server, WseClient(server.url, ssl=theirs) as client:
            client.channel.on("news", heard.put_nowait)
            for size in (1, 1000, 900_000):
                assert await client.call("echo", "x" * size) == "x" * size
            assert await asyncio.gather(*(client.call("echo", n) for n in range(100))) == list(range(100))
            server.broadcast("news", "y" * 300_000)
            assert await heard.get() == "y" * 300_000
            (session,) = server._hub.sockets.open
            print(type(session.link._underlying).__name__, session.link.silence())
    print("exchanged")

asyncio.run(main())
"""
    with program("-c", HIDE + code) as running:
        output = running.read_until("exchanged")
        assert "_WrappedTransport inf" in output  # asyncio's own transport, and a kernel that tells nothing
        assert running.stop() == 0, running.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_by_a_signal_that_the_event_loop_cannot_listen_to(number):
    code = """
import asyncio
from wse import WseClient

@server.when.joined
async def joined(identity, meta):
    print("serving", flush=True)

@server.when.left
async def left(identity, code, reason):
    print("left", code, reason, flush=True)

async def connect():
    client = WseClient(server.url)
    await client.connect()
    await client.wait_closed()

import threading
async def start_client():
    while not server.port:
        await asyncio.sleep(0.01)
    await connect()
threading.Thread(target=asyncio.run, args=(start_client(),), daemon=True).start()
server.run(grace=1)
print("ended", flush=True)
"""
    with program("-c", HIDE + SERVER + code) as running:
        running.read_until("serving")
        assert running.stop(number) == 0, running.output
        assert "left 1012 wse.by-server" in running.output
        assert running.output.endswith("ended\n")


def test_the_command_serves_with_one_worker_and_says_that_it_cannot_with_more(tmp_path):
    (tmp_path / "app.py").write_text(SERVER)
    code = HIDE + "sys.argv[0] = 'wse'\nfrom wse.cli import main\nmain()"
    serve = ["serve", "app:server", "--app-dir", str(tmp_path), "--port", "0"]
    with program("-c", code, *serve) as running:
        running.read_until("listening on ws://127.0.0.1:")
        assert running.stop(signal.SIGTERM) == 0, running.output
    for options, which in ((["--workers", "2"], "--workers"), (["--reload"], "--reload")):
        with program("-c", code, *serve, *options) as running:
            assert running.stop() == 2
            assert f"{which} needs processes that share a port" in running.output
