"""What a server and a client write into the log, at which level, and with which keys."""

import ast
import asyncio
import json
import logging
from contextlib import suppress
from pathlib import Path

import pytest

import wse
from support.core import ServerSide
from support.net import TIMEOUT, make_server, soon
from wse import Backoff, ErrorCode, Limits, WseClient, WseError, WseServer
from wse.brokers.memory import MemoryBroker
from wse.core.folding import INTERVAL, MOST, Folding
from wse.core.session.log import Log
from wse.core.urls import without_secrets
from wse.testing import connect

SOURCE = Path(wse.__file__).parent


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO, "wse")


def kinds(caplog):
    return [record.kind for record in caplog.records if record.name.startswith("wse")]


def one(caplog, kind):
    (record,) = [record for record in caplog.records if record.kind == kind]
    return record


async def logged(caplog, kind):
    """Wait for a record of that kind."""
    async with asyncio.timeout(TIMEOUT):
        while kind not in kinds(caplog):
            await asyncio.sleep(0)
    return [record for record in caplog.records if record.kind == kind][-1]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_every_record_has_extra_keys(path):
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical", "log")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "logger"
    ]
    for call in calls:
        assert "extra" in [keyword.arg for keyword in call.keywords], f"line {call.lineno} has no extra"


async def test_a_server_tells_where_it_listens_when_it_is_ready_and_what_it_has_done(caplog):
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0)
    async with server:
        url, record = server.url, one(caplog, "listening")
        async with WseClient(server.url, identity="ann") as client:
            server.channel.on("chat", lambda conn, text: conn.send("chat", text))
            client.send("chat", "hello")
            await soon(client.when.ignored.wait())
            closing = asyncio.ensure_future(server.close())
            await soon(closing)
    assert url in record.getMessage()
    assert "wse-default-json" in record.getMessage()
    assert (record.url, record.protocols, record.broker) == (url, ["wse-default-json"], "")
    assert record.version in record.getMessage()
    assert one(caplog, "ready").levelno == logging.INFO
    assert (one(caplog, "closing").connections, one(caplog, "closing").users) == (1, 1)
    closed = one(caplog, "closed")
    assert (closed.opened, closed.messages_in, closed.messages_out) == (1, 1, 1)
    assert kinds(caplog).index("listening") < kinds(caplog).index("ready") < kinds(caplog).index("closing")


async def test_a_server_without_a_port_tells_that_it_is_ready(caplog):
    server = WseServer(lambda auth: auth.accept("ann"), broker=MemoryBroker())
    async with connect(server):
        pass
    record = one(caplog, "ready")
    assert record.broker == "MemoryBroker"
    assert record.node
    await server.close()
    assert kinds(caplog)[-2:] == ["closing", "closed"]


async def test_a_server_that_could_not_start_tells_nothing_of_a_close(caplog):
    async with WseServer(lambda auth: None, port=0) as server:
        caplog.clear()
        with pytest.raises(OSError, match="in use"):
            await WseServer(lambda auth: None, port=server.port).start()
        assert kinds(caplog) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://ann:secret@one:4222,ben:secret@two:4222?prefix=x", "nats://one:4222,two:4222"),
        ("redis://:secret@host:6379/3", "redis://host:6379/3"),
        ("memory:", "memory:"),
    ],
)
def test_a_broker_is_named_without_its_secrets(url, shown):
    assert without_secrets(url) == shown


async def test_refused_clients_are_logged_by_kind_and_not_without_end(caplog):
    server = WseServer(lambda auth: auth.refuse(), limits=Limits(), auth_timeout=0)
    for _ in range(30):
        with pytest.raises(WseError, match="not-authorized"):
            async with connect(server):
                pass
    records = [record for record in caplog.records if record.kind.startswith("refused")]
    assert len(records) == 10
    assert records[0].kind == "refused: wse.not-authorized"
    assert records[0].conn_id
    await server.close()


async def test_a_crash_has_a_traceback_and_names_the_user_the_connection_and_the_procedure(caplog):
    server = WseServer(lambda auth: auth.accept("ann"))

    @server.register("fail")
    def fail(conn, payload):
        raise LookupError("no such thing")

    @server.channel.on("chat")
    def chat(conn, payload):
        raise LookupError("no such thing")

    async with connect(server) as client:
        with pytest.raises(WseError):
            await client.call("fail")
        (conn,) = server.clients["ann"].conns.values()
        client.send("chat")
        async with asyncio.timeout(TIMEOUT):
            while kinds(caplog).count("error") < 2:
                await asyncio.sleep(0)
    call, message = [record for record in caplog.records if record.kind == "error"]
    for record, key, name in ((call, "rp", "fail"), (message, "type", "chat")):
        assert record.levelno == logging.ERROR
        assert isinstance(record.exc_info[1], LookupError)
        assert (record.cid, record.conn_id, getattr(record, key)) == ("ann", conn.conn_id, name)
        assert all(text in record.getMessage() for text in ("'ann'", conn.conn_id, name))
    assert server.stats().errors == {"wse.server.rp.failed": 1, "wse.server.msg-processing-error": 1}
    assert server.stats().answers == {}
    await server.close()


async def test_an_answer_s_code_is_counted_only_if_it_is_wse_s_own():
    server = WseServer(lambda auth: auth.accept("ann"))

    @server.register("no")
    def no(conn, payload):
        raise WseError(payload)

    async with connect(server) as client:
        for code in ("from-a-peer-1", "from-a-peer-2", str(ErrorCode.NOT_AUTHORIZED)):
            with pytest.raises(WseError):
                await client.call("no", code)
    assert server.stats().answers == {"other": 2, "wse.not-authorized": 1}
    await server.close()


async def test_failed_attempts_to_reconnect_are_one_warning_without_a_traceback_and_the_return_is_told(caplog):
    server = make_server()
    await server.start()
    client = WseClient(server.url, reconnect=True, backoff=Backoff(base=0, cap=0.001))
    await client.connect("ann")
    attempts = 0

    @client.when.updated
    def updated(status):
        nonlocal attempts
        attempts += 1

    port, again = server.port, make_server()
    await server.close()
    async with asyncio.timeout(TIMEOUT):
        while client._endpoint.counters.errors[ErrorCode.WS_CLIENT_ERROR] < 20:
            await asyncio.sleep(0)
    again.configure(port=port)
    async with again:
        await soon(client.wait_ready())
        back = await logged(caplog, "reconnected")
        failures = [record for record in caplog.records if getattr(record, "code", "") == "wse.client.ws-error"]
        assert [(record.levelno, record.exc_info) for record in failures] == [(logging.WARNING, None)]
        assert str(port) in failures[0].getMessage()
        assert failures[0].url == back.url == client.url
        assert back.levelno == logging.INFO
        assert one(caplog, "connection-lost").levelno == logging.INFO
        assert not any(record.levelno >= logging.ERROR for record in caplog.records)
        await client.close()


async def test_what_peers_do_wrong_is_a_warning_in_one_line(caplog):
    side = ServerSide()
    log = Log(side.scheduler.time)
    error = WseError(ErrorCode.PROTOCOL_VIOLATION, {"from": "x", "close": [1000, ""]}, "no\nsuch\x1bthing")
    error.__cause__ = ValueError("two\nlines")
    log.error(error, {"cid": "ann\n<b>", "conn_id": "7"})
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()
    assert record.cid == "ann\n<b>"
    for _ in range(100):
        log.error(error, {})
    assert len(caplog.records) == 10


async def test_records_suit_a_json_formatter(caplog):
    class JsonFormatter(logging.Formatter):
        def format(self, record):
            return json.dumps({"text": record.getMessage(), **{k: record.__dict__[k] for k in ("kind", "cid", "code")}})

    server = WseServer(lambda auth: auth.accept("ann"))
    server.register("no", lambda conn, payload: 1 / 0)
    async with connect(server) as client:
        with suppress(WseError):
            await client.call("no")
    line = json.loads(JsonFormatter().format(one(caplog, "error")))
    assert (line["cid"], line["code"]) == ("ann", "wse.server.rp.failed")
    await server.close()


def test_kinds_beyond_the_bound_are_folded_together_until_older_ones_run_out():
    now = [0.0]
    folding = Folding(lambda: now[0])
    assert [folding.left_out(n, 1) for n in range(MOST + 1)] == [0] * (MOST + 1)
    assert folding.left_out("another", 1) is None
    assert folding.left_out(3, 1) is None
    now[0] = INTERVAL
    assert folding.left_out("another", 1) == 0
    assert folding.left_out("one more", 1) == 0
