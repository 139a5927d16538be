"""`/metrics` on the built-in listener."""

import asyncio

import pytest

from support.net import RawSocket, make_server, soon
from wse import WseClient, WseServer


async def request(place, target, method="GET", **headers):
    async with await RawSocket.open(place.url) as socket:
        return await socket.request(target, method=method, **headers)


async def test_the_listener_serves_metrics_in_the_format_that_is_asked_for(listen):
    server = make_server(metrics="/metrics", path="/ws")
    server.register("add", lambda conn, payload: payload)
    place = await listen(server)
    async with WseClient(server.url, identity="ann") as client:
        assert await soon(client.call("add", 1)) == 1
        status, headers, body = await request(place, "/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert b"wse_connections 1.0\n" in body
        assert b'wse_call_duration_seconds_count{procedure="add"} 1.0\n' in body
        _, headers, body = await request(place, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert headers["content-type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await soon(socket.reader.read())
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")
    status, headers, _ = await request(place, "/metrics", "POST")
    assert (status, headers["allow"]) == (405, "GET")


async def test_metrics_that_cannot_be_read_are_an_error_and_nothing_hangs(listen, monkeypatch, caplog):
    server = make_server(metrics="/metrics")
    place = await listen(server)
    monkeypatch.setattr(server._lifecycle.options.routes["/metrics"], "_read", lambda: 1 / 0)
    assert (await request(place, "/metrics"))[0] == 500
    assert "ZeroDivisionError" in caplog.text


async def test_a_scrape_that_is_given_up_leaves_nothing_behind(listen):
    server = make_server(metrics="/metrics")
    place = await listen(server)
    for _ in range(5):
        async with await RawSocket.open(place.url) as socket:
            socket.writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            socket.writer.transport.abort()
    assert (await request(place, "/metrics"))[0] == 200


async def test_without_metrics_there_is_no_such_path(listen):
    place = await listen(make_server(path="/ws"))
    assert (await request(place, "/metrics"))[0] == 404


async def test_a_page_of_another_origin_cannot_read_them(listen):
    place = await listen(make_server(metrics="/metrics"))
    _, headers, _ = await request(place, "/metrics", Origin="https://evil.example")
    assert "access-control-allow-origin" not in headers


def test_a_path_begins_with_a_slash():
    with pytest.raises(ValueError, match="slash"):
        WseServer(metrics="metrics")


@pytest.mark.slow
async def test_a_scrape_while_many_connect_is_fast_and_does_not_stall_the_event_loop(listen):
    server = make_server(metrics="/metrics", conns_per_user=10_000, auth_timeout=0)
    place = await listen(server)
    loop = asyncio.get_running_loop()
    took = []

    async def scrape():
        start = loop.time()
        assert (await request(place, "/metrics"))[0] == 200
        took.append(loop.time() - start)

    sessions = set(server._hub.sockets.open)
    for _ in range(25):  # 50,000 sessions, of which a walk sees 2,000 in a turn
        async with WseClient(server.url, identity="ann"):
            (session,) = set(server._hub.sockets.open) - sessions
            for _ in range(2000):
                copy = type(session)(server._hub, session.link, session.conn.request, session.protocol)
                sessions.add(copy)
            server._hub.sockets.open |= sessions
            await scrape()
            server._hub.sockets.open -= sessions
    assert sorted(took)[len(took) // 2] < 0.1
    lag = server._metrics._instruments.lag
    assert sum(lag.counts) > 0
