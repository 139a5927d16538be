"""A node of an older version beside new ones: a deployment that is under way."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.cluster import cluster_of, until
from support.net import Log, soon
from support.programs import program
from wse import Backoff, ErrorCode, Publisher, WseClient, WseError
from wse.brokers import from_url

ROOT = Path(__file__).parents[2]
BEFORE = {
    "without sessions": "ffb9eae2b215531d73e17ce83d029780797462e2",
    "with sessions that do not move": "d46e498e1894e91352f1ec74fb4be5a175e6406a",
}
"""Commits whose nodes do not number their messages."""

WITHOUT_STREAMS = "9b36591acb7d6ddf886e759e6f19111c6afc19eb"
"""A commit whose nodes know nothing of streams between nodes."""

NODE = """
import asyncio, sys
if sys.argv[2]:
    sys.path.insert(0, sys.argv[2])
from wse import WseServer

server = WseServer(lambda auth: auth.accept(auth.identity), port=0, broker=sys.argv[1], conns_per_user=5)
server.when.error(lambda error, conn: print("error:", repr(error), repr(error.__cause__), flush=True))
server.channel.on("all", lambda conn, payload: server.broadcast("all", payload))

@server.register("ask")
async def ask(conn, cid):
    return await server.call(cid, "where", mode="any")

async def main():
    async with server:
        print("url:", server.url, flush=True)
        await server.serve_forever()

asyncio.run(main())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def package(directory, commit):
    """The package as it was."""
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("the history of the repository is not here, or not all of it")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return str(directory / "src")


@pytest.fixture(scope="module", params=BEFORE)
def before(tmp_path_factory, request):
    """The package before sessions could move."""
    return package(tmp_path_factory.mktemp("before"), BEFORE[request.param])


@pytest.fixture
def start(valkey, before):
    """`start(old=False)` starts a node, and returns its URL and the program."""
    url = valkey.url()
    with ExitStack() as stack:

        def start(*, old=False):
            running = stack.enter_context(program("-c", NODE, url, before if old else ""))
            output = running.read_until("url: ws://")
            while not (line := output.partition("url: ")[2]).endswith("\n"):
                output = running.read_until("\n")
            return line.strip(), running

        start.broker = url
        yield start


class Client(Log):
    """A client that goes where it is told to."""

    def __init__(self, url):
        super().__init__()
        self.client = WseClient(url, identity="ann", reconnect=True, resume=True, backoff=Backoff(base=0.01, cap=0.05))
        self.client.when.lost(lambda loss: self.add("lost", loss.why))
        self.client.when.resumed(self.adder("resumed"))
        self.client.when.ready(self.adder("ready"))
        self.client.channel.on("all", lambda n: self.add("all", n))

    async def move(self, url):
        """Come back to another node; what became of the session."""
        count = len(self.entries)
        await soon(self.client.jump(url))
        await until(lambda: any(entry[0] in ("ready", "resumed") for entry in self.entries[count:]))
        return next(entry for entry in self.entries[count:] if entry[0] != "all")


async def test_a_client_that_goes_between_an_old_node_and_a_new_one_begins_anew_and_is_told(start):
    (old, one), (new, two) = start(old=True), start()
    client = Client(old)
    async with client.client:
        for n, url in enumerate((new, old, new)):
            assert await client.move(url) in (("lost", "unknown"), ("lost", "off"), ("ready", None))
            client.client.send("all", n)
            await client.until("all", n)
        # One who changes nodes just then may get a message over both connections.
        assert sorted(set(client.all("all"))) == [(0,), (1,), (2,)]
        assert client.all("resumed") == []
        assert client.all("lost")
    for running in one, two:
        running.process.terminate()
        await asyncio.to_thread(running.stop)
        assert "error:" not in running.output


async def test_messages_of_an_old_node_cost_a_move_the_session_at_most(start):
    nodes = [start(old=old) for old in (True, False, False)]
    (old, _), (one, _), (two, _) = nodes
    client = Client(one)
    async with client.client, WseClient(old, identity="bob") as bob, Publisher(start.broker) as publisher:
        count, outcomes = 0, set()
        for turn in range(20):
            moving = asyncio.ensure_future(client.move((two, one)[turn % 2]))
            while not moving.done():
                (bob.send if count % 2 else publisher.broadcast)("all", count)
                count += 1
                await asyncio.sleep(0.002)
            outcomes.add(await moving)
        bob.send("all", "last")
        await client.until("all", "last")
        heard = [n for (n,) in client.all("all")]
        assert len(set(heard)) == len(heard)
        assert outcomes <= {("resumed", None), ("lost", "unreachable")}
        if outcomes == {("resumed", None)}:
            assert sorted(heard[:-1]) == list(range(count))
    for _, running in nodes:
        running.process.terminate()
        await asyncio.to_thread(running.stop)
        assert "error:" not in running.output


async def test_a_node_without_streams_is_called_plainly_and_never_sent_what_it_does_not_know(valkey, tmp_path):
    url = valkey.url()
    with program("-c", NODE, url, package(tmp_path, WITHOUT_STREAMS)) as running:
        output = running.read_until("url: ws://")
        while not (line := output.partition("url: ")[2]).endswith("\n"):
            output = running.read_until("\n")
        async with cluster_of([from_url(url)]) as nodes, WseClient(line.strip(), identity="ann") as ann:
            ann.register("where", lambda _: "at the old node")
            bob = await nodes.device(0, "bob")
            bob.client.register("where", lambda _: "at the new node")
            assert await soon(nodes[0].call("ann", "where", mode="any")) == "at the old node"
            assert await soon(ann.call("ask", "bob")) == "at the new node"
            for wanted in (
                anext(nodes[0].stream("ann", "where")),
                nodes[0].call("ann", "where", on_progress=print),
                nodes[0].call("ann", "where", mode="any", upload=[1]),
            ):
                with pytest.raises(WseError) as caught:
                    await soon(wanted)
                assert caught.value.code == ErrorCode.UNSUPPORTED
            assert await soon(nodes[0].call("ann", "where", mode="any")) == "at the old node"
            assert nodes.codes() == set()
        running.process.terminate()
        await asyncio.to_thread(running.stop)
        assert "error:" not in running.output
