"""Sending from outside of a cluster: what goes wrong is raised."""

import asyncio
import subprocess
import sys

import pytest

from support.cluster import cluster_of, until
from support.net import accept_all, soon
from wse import BlockingPublisher, ErrorCode, Publisher, WseError, WseJSON, WseMsgpack, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster


async def test_what_cannot_be_sent_is_raised():
    engine = MemoryCluster()
    async with Publisher(MemoryBroker(engine)) as publisher:
        for send, error in (
            (lambda: publisher.send("ann", "~wse:hi"), ErrorCode.PROTOCOL_VIOLATION),
            (lambda: publisher.send("ann", "say", object()), ErrorCode.MSG_PROCESSING_ERROR),
        ):
            with pytest.raises(WseError) as caught:
                send()
            assert caught.value.code == error
        with pytest.raises(TypeError, match="strings or integers"):
            publisher.room((1, 2)).send("say")
        with pytest.raises(ValueError):
            publisher.drop_client("ann", "x" * 200)


async def test_without_the_broker_sending_fails_at_once():
    engine = MemoryCluster()
    publisher = Publisher(MemoryBroker(engine))
    await publisher.open()
    engine.pause()
    for use in (lambda: publisher.broadcast("say"), lambda: publisher.drop_client("ann")):
        with pytest.raises(WseError) as caught:
            use()
        assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    with pytest.raises(WseError) as caught:
        await publisher.__aexit__(None)  # which waits until all has been taken
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    with pytest.raises(WseError) as caught:
        await soon(Publisher(MemoryBroker(engine)).open())
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE


async def test_an_exception_inside_is_not_replaced_by_one_of_the_broker():
    engine = MemoryCluster()

    async def fail():
        async with Publisher(MemoryBroker(engine)):
            engine.pause()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()


async def test_a_publisher_of_several_protocols_packs_for_each():
    engine = MemoryCluster()
    async with (
        cluster_of([MemoryBroker(engine)], protocol=[WseJSON(), WseMsgpack()]) as nodes,
        Publisher(MemoryBroker(engine), protocol=[WseMsgpack(), WseJSON()]) as publisher,
    ):
        text, packed = await nodes.device(0, "ann"), await nodes.device(0, "bob", protocol=WseMsgpack())
        publisher.broadcast("say", [1])
        await until(lambda: text.entries == packed.entries == [("say", [1])])


async def test_a_publisher_tells_nobody_of_the_connection():
    engine = MemoryCluster()
    async with Publisher(MemoryBroker(engine)) as publisher:
        engine.pause()
        engine.resume()
        await asyncio.sleep(0)
        publisher.received("all", b"")
        publisher.send("ann", "say")


def test_code_without_asyncio_is_told_what_cannot_be_sent():
    publisher = BlockingPublisher("memory:")
    with pytest.raises(WseError) as caught:
        publisher.send("ann", "~wse:hi")
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    with publisher:
        publisher.room("tea").send("say")
        publisher.broadcast("say")
        publisher.drop_client("ann", "bye")
        thread = publisher._thread
    publisher.close()
    assert not thread.is_alive()


def test_a_publisher_without_asyncio_needs_a_broker():
    publisher = BlockingPublisher("nats://127.0.0.1:1")
    with pytest.raises(WseError) as caught:
        publisher.send("ann", "say")
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    publisher.close()
    with pytest.raises(ValueError, match="no broker"):
        BlockingPublisher("http://127.0.0.1").send("ann", "say")


def test_a_publisher_connects_anew_in_a_process_that_was_forked():
    program = """
import os, threading
from wse import BlockingPublisher
publisher = BlockingPublisher("memory:")
publisher.send("ann", "say")
if not os.fork():
    publisher.send("ann", "say")
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
publisher.send("ann", "say")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "7\n", result.stderr


# Servers and their broker.


async def test_a_server_without_its_broker_does_not_start():
    engine = MemoryCluster()
    engine.pause()
    server = WseServer(accept_all, port=0, broker=MemoryBroker(engine))
    with pytest.raises(WseError) as caught:
        await soon(server.start())
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    engine.resume()
    async with server:
        assert server.cluster.healthy
    assert not server.cluster.healthy


async def test_a_web_application_without_its_broker_does_not_start():
    engine = MemoryCluster()
    engine.pause()
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    server = WseServer(accept_all, broker=MemoryBroker(engine))
    await soon(server.asgi({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "broker" in sent[0]["message"]


async def test_a_server_that_cannot_listen_leaves_its_cluster():
    engine = MemoryCluster()
    async with WseServer(accept_all, port=0) as other:
        server = WseServer(accept_all, port=other.port, broker=MemoryBroker(engine))
        with pytest.raises(OSError):
            await soon(server.start())
    assert engine.nodes() == frozenset()
