"""The operations page: what it shows and does, who may use it, and what it costs."""

import asyncio
import gc
import logging
import re
import subprocess
import sys
from time import thread_time

import httpx
import pytest

from support.net import TIMEOUT, soon
from wse import ErrorCode, WseClient, WseError, WseServer
from wse.admin import console, directory
from wse.admin.console import LIMITS
from wse.admin.directory import SLICE
from wse.admin.journal import MOST, Journal, place_of, shown
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.core.hub.connection import WseIdentity
from wse.core.ports.http import HttpCall
from wse.testing import connect
from wse.transports.request import CompactHeaders

KEY = "the-key-of-a-test"


def operators(auth):
    if auth.identity.get("key") == KEY:
        auth.accept(auth.identity["name"])
    else:
        auth.refuse("wrong key")


def make(**options):
    options.setdefault("conns_per_user", 3)
    options.setdefault("admin", operators)
    return WseServer(lambda auth: auth.accept(auth.identity), **options)


def operate(server, **options):
    """Connect as the page does."""
    options.setdefault("identity", {"name": "grace", "key": KEY})
    return connect(server._console.backstage, **options)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No test waits for what is kept for a moment."""
    monkeypatch.setattr(console, "FRESH", -1)
    monkeypatch.setattr(console, "SURVEY_EVERY", 0)


async def here(page):
    (node,) = (await page.call("overview"))["nodes"]
    return node


# Who may.


async def test_only_what_its_own_handler_accepts_gets_in():
    async with make() as server:
        for identity in ("ann", {"name": "grace", "key": "wrong"}, {}, None, {"key": ["x"]}):
            with pytest.raises(WseError) as raised:
                async with operate(server, identity=identity):
                    pass
            assert raised.value.code == ErrorCode.NOT_AUTHORIZED
        async with operate(server) as page:
            assert await page.call("overview")


async def test_operators_are_no_users_and_no_connections_of_the_application():
    async with make() as server, operate(server), operate(server) as page:
        assert (await here(page))["connections"] == 0
        assert server.clients == {}
        assert (server.stats().connections, server.stats().opened) == (0, 0)
        server.broadcast("all")
        with pytest.raises(WseError) as raised:
            await page.call("unheard-of")
        assert raised.value.code == ErrorCode.RP_NOT_REGISTERED


async def test_users_of_the_application_cannot_call_what_the_page_calls():
    async with make() as server, connect(server, "ann") as client:
        with pytest.raises(WseError) as raised:
            await client.call("overview")
        assert raised.value.code == ErrorCode.RP_NOT_REGISTERED


def test_without_the_argument_nothing_of_it_is_loaded():
    program = "import sys, wse; wse.WseServer(); print([name for name in sys.modules if name.startswith('wse.admin')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(ValueError, match="admin"):
        _ = WseServer().admin


async def test_the_log_tells_of_the_application_once_and_of_what_operators_do(caplog):
    caplog.set_level(logging.INFO, "wse")
    name = "ann\nERROR forged"
    async with make() as server, connect(server, name) as client, operate(server) as page:
        (conn_id,) = server.clients[name].conns
        (row,) = (await page.call("users", {}))["rows"]
        await page.call("send", {"type": "news", "user": row["ref"]})
        await page.call("drop-device", {"conn_id": "unknown"})
        await page.call("drop-device", {"conn_id": conn_id})
        await soon(client.wait_closed())
        with pytest.raises(WseError):
            await page.call("send", {"type": "~wse:hi"})
    kinds = [record.kind for record in caplog.records]
    assert (kinds.count("ready"), kinds.count("closing"), kinds.count("closed")) == (1, 1, 1)
    operated = [record for record in caplog.records if record.kind == "operated"]
    assert [record.operator for record in operated] == ["grace", "grace"]
    assert (operated[0].cid, operated[1].conn_id) == (name, conn_id)
    assert [record.getMessage() for record in operated] == [
        f"the operator 'grace' sent a message to the user {name!r}",
        f"the operator 'grace' dropped the device {conn_id!r}",
    ]


async def test_it_is_there_again_after_a_restart():
    server = make()
    for _ in range(2):
        async with server, operate(server) as page:
            assert (await here(page))["users"] == 0
        await soon(page.wait_closed())


# What it shows.


async def test_the_numbers_of_the_server():
    async with make() as server, connect(server, "ann"), connect(server, "bob"), operate(server) as page:
        server.room("lobby").add(server.clients["ann"])
        seen = await here(page)
        assert (seen["connections"], seen["users"], seen["rooms"], seen["cluster"]) == (2, 2, 1, None)
        assert seen["version"]
        assert seen["uptime"] >= 0
        assert (await page.call("overview"))["users"] == 2


async def test_all_users_are_found_page_by_page_in_order_and_once(monkeypatch):
    monkeypatch.setattr(directory, "SLICE", 40)
    async with make() as server, operate(server) as page:
        names = [f"user-{n}" for n in range(130)]
        server._hub.identities.update({name: WseIdentity(server._hub, name, {}) for name in names})
        found, after, pages = [], None, 0
        while True:
            answer = await page.call("users", {"after": after})
            found += [row["name"] for row in answer["rows"]]
            pages, after = pages + 1, answer["next"]
            if after is None:
                break
        assert (found, pages) == (names, 3)
        server._hub.identities.clear()


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["7", "70", "ann", "anna", "bob"]),
        ("an", ["ann", "anna"]),
        ("anna", ["anna"]),
        ("7", ["7", "70"]),
        ("70", ["70"]),
        ("zoe", []),
        ("<b>", []),
        ("9" * 1900, []),
    ],
)
async def test_users_are_found_by_the_beginning_of_their_id(search, found):
    async with make() as server, operate(server) as page:
        for cid in (7, "70", "ann", "anna", "bob"):
            server._hub.identities[cid] = WseIdentity(server._hub, cid, {})
        assert [row["name"] for row in (await page.call("users", {"search": search}))["rows"]] == found
        server._hub.identities.clear()


async def test_one_whose_id_is_what_is_searched_comes_first_and_once():
    async with make() as server, operate(server) as page:
        names = [f"a{n}" for n in range(200)] + ["a"]
        server._hub.identities.update({name: WseIdentity(server._hub, name, {}) for name in names})
        first = await page.call("users", {"search": "a"})
        assert first["rows"][0]["name"] == "a"
        rest = first["rows"][1:]
        while first["next"] is not None:
            first = await page.call("users", {"search": "a", "after": first["next"]})
            rest += first["rows"]
        assert [row["name"] for row in rest] == names[:-1]
        server._hub.identities.clear()


async def test_the_id_of_a_device_finds_its_user():
    async with make() as server, connect(server, "bob"), connect(server, "ann"), operate(server) as page:
        (conn_id,) = server.clients["ann"].conns
        assert [row["name"] for row in (await page.call("users", {"search": conn_id}))["rows"]] == ["ann"]


@pytest.mark.parametrize("after", [["", 2**53], ["zzz", 0], ["", 10**6]])
async def test_a_position_that_is_beyond_the_end_is_the_end(after):
    async with make() as server, connect(server, "ann"), operate(server) as page:
        assert await page.call("users", {"after": after}) == {"rows": [], "next": None}


@pytest.mark.parametrize("after", [["", -1], ["", "0"], [0, 0], "x", [""], {"a": 1}])
async def test_a_position_that_is_none_is_refused(after):
    async with make() as server, operate(server) as page:
        with pytest.raises(WseError) as raised:
            await page.call("users", {"after": after})
        assert raised.value.code == ErrorCode.INVALID_PAYLOAD


async def test_the_devices_of_a_user():
    async with make() as server, connect(server, "ann"), connect(server, "ann"), operate(server) as page:
        server.room("lobby").add(server.clients["ann"])
        one, two = await page.call("devices", {"user": "sann"})
        assert [one["conn_id"], two["conn_id"]] == list(server.clients["ann"].conns)
        assert (one["attached"], one["queued"], one["protocol"]) == (True, 0, "wse-default-json")
        assert (one["rooms"], one["more_rooms"]) == (["lobby"], 0)
        assert await page.call("devices", {"user": "sbob"}) == []
        with pytest.raises(WseError) as raised:
            await page.call("devices", {"user": "?"})
        assert raised.value.code == ErrorCode.INVALID_PAYLOAD


async def test_a_user_whose_id_is_no_name_of_a_cluster_is_found_by_a_device():
    server = WseServer(lambda auth: auth.accept(("team", 1)), admin=operators)
    async with server, connect(server) as client, operate(server) as page:
        (row,) = (await page.call("users", {}))["rows"]
        assert row["name"] == "('team', 1)"
        (device,) = await page.call("devices", {"user": row["ref"]})
        assert device["attached"]
        closed = asyncio.ensure_future(client.when.closed.wait())
        await page.call("drop-user", {"user": row["ref"]})
        assert await soon(closed) == (1000, "wse.by-server")
        for procedure, payload in ("drop-user", {}), ("send", {"type": "news"}):  # nobody is known by it now
            with pytest.raises(WseError, match="has left"):
                await page.call(procedure, {"user": row["ref"], **payload})


async def test_rooms_and_how_many_are_in_them():
    async with make() as server, connect(server, "ann"), connect(server, "bob"), operate(server) as page:
        server.room("lobby").add(server.clients["ann"])
        server.room("lobby").add(server.clients["bob"])
        server.room(("a", 1)).add(server.clients["bob"])
        rows = (await page.call("rooms", {}))["rows"]
        assert [(row["name"], row["ref"], row["members"]) for row in rows] == [
            ("lobby", "slobby", 2),
            ("('a', 1)", None, 1),
        ]
        assert [row["name"] for row in (await page.call("rooms", {"search": "lo"}))["rows"]] == ["lobby"]


async def test_receivers_that_are_slow_are_named_the_slowest_first():
    async with make() as server, connect(server, "ann") as ann, connect(server, "bob") as bob, operate(server) as page:
        with ann.link.hold(), bob.link.hold():
            server.send("ann", "news", "x" * 1000)
            server.send("bob", "news", "x" * 9000)
            seen = await here(page)
        assert [slow["user"] for slow in seen["slow"]] == ["bob", "ann"]
        assert seen["slow"][0]["queued"] > 9000
        assert seen["queued"] == sum(slow["queued"] for slow in seen["slow"])


async def test_errors_are_shown_with_their_places_those_of_one_place_as_one(caplog):
    caplog.set_level(logging.CRITICAL, "wse")
    async with make() as server, connect(server, "ann") as client, operate(server) as page:

        @server.register("fail")
        def fail(conn, payload):
            raise LookupError(payload)

        @server.register("deny")
        def deny(conn, payload):
            raise WseError("app.denied")

        with pytest.raises(WseError):
            await client.call("deny")  # an answer, and no error
        for text in ("one", "<script>alert(1)</script>"):
            with pytest.raises(WseError):
                await client.call("fail", text)
        (entry,) = (await here(page))["failures"]
        assert (entry["count"], entry["code"]) == (2, "wse.server.rp.failed")
        assert entry["cause"] == "LookupError: <script>alert(1)</script>"
        line = fail.__code__.co_firstlineno + 2
        assert entry["place"].startswith(f"{__file__}:{line} in ")
        assert (entry["facts"]["cid"], entry["facts"]["rp"]) == ("ann", "fail")
        assert 0 <= entry["ago"] < TIMEOUT


async def test_handlers_that_have_blocked_are_shown_apart(caplog):
    caplog.set_level(logging.CRITICAL, "wse")
    async with make() as server, operate(server) as page:
        server._handler_blocked("chat (app.py:3)", 1.2345)
        server._handler_blocked("other (app.py:9)", 2.0)
        seen = await here(page)
        assert [(entry["facts"]["handler"], entry["seconds"]) for entry in seen["blocked"]] == [
            ("other (app.py:9)", 2.0),
            ("chat (app.py:3)", 1.234),
        ]
        assert seen["failures"] == []


def test_peers_cannot_drive_out_the_errors_of_others():
    journal = Journal(lambda: 0.0)
    journal.note(WseError(ErrorCode.BROKER_UNAVAILABLE), {})
    for n in range(3 * MOST):
        journal.note(WseError(ErrorCode.PROTOCOL_VIOLATION, {"type": f"t{n}"}, f"text {n}"), {"cid": f"u{n}"})
    assert [entry["code"] for entry in journal.entries()[1]] == [
        str(ErrorCode.PROTOCOL_VIOLATION),
        str(ErrorCode.BROKER_UNAVAILABLE),
    ]


def test_so_many_kinds_of_errors_are_kept_and_no_more():
    journal = Journal(lambda: 0.0)
    for n in range(3 * MOST):
        journal.note(WseError(f"app.{n}"), {})
    codes = [entry["code"] for entry in journal.entries()[1]]
    assert codes == [f"app.{n}" for n in range(3 * MOST - 1, 2 * MOST - 1, -1)]


async def test_an_exception_whose_text_cannot_be_had_is_an_error_like_others(caplog):
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError

    async with make() as server, connect(server, "ann") as client, operate(server) as page:

        @server.register("fail")
        def fail(conn, payload):
            raise MuteError

        for _ in range(2):  # the connection is still there
            with pytest.raises(WseError) as raised:
                await client.call("fail")
            assert raised.value.code == ErrorCode.RP_EXECUTION_FAILED
        failures = (await here(page))["failures"]
    assert ("MuteError: <MuteError without a text>", 2) in [
        (failure["cause"], failure["count"]) for failure in failures
    ]


def test_what_is_shown_is_short_and_can_be_encoded():
    assert shown("x" * 300) == "x" * 199 + "…"
    assert shown("a\ud800b").encode() == b"a?b"
    assert place_of(None) == place_of(LookupError()) == ""


# What it does.


async def test_a_device_or_a_user_is_dropped():
    async with make() as server, connect(server, "ann") as one, connect(server, "ann") as two, operate(server) as page:
        first, closed = next(iter(server.clients["ann"].conns)), asyncio.ensure_future(one.when.closed.wait())
        assert await page.call("drop-device", {"conn_id": first}) is True
        assert await soon(closed) == (1000, "wse.by-server")
        assert await page.call("drop-device", {"conn_id": first}) is False
        closed = asyncio.ensure_future(two.when.closed.wait())
        await page.call("drop-user", {"user": "sann"})
        await soon(closed)
        await page.call("drop-user", {"user": "snobody"})


@pytest.mark.parametrize("to", [{"user": "sann"}, {"room": "slobby"}, {}])
async def test_a_message_is_sent(to):
    async with make() as server, connect(server, "ann") as client, operate(server) as page:
        server.room("lobby").add(server.clients["ann"])
        heard = asyncio.ensure_future(client.when.ignored.wait())
        await page.call("send", {"type": "news", "payload": {"a": [1]}, **to})
        assert (await soon(heard))[:2] == ("news", {"a": [1]})


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "~wse:welcome"}, ErrorCode.PROTOCOL_VIOLATION),
        ({"type": ""}, ErrorCode.PROTOCOL_VIOLATION),
        ({"type": 7}, ErrorCode.INVALID_PAYLOAD),
        ({}, ErrorCode.INVALID_PAYLOAD),
        ({"type": "x", "user": "?"}, ErrorCode.INVALID_PAYLOAD),
        ({"type": "x", "room": "i"}, ErrorCode.INVALID_PAYLOAD),
        ({"type": "x", "user": "bA"}, ErrorCode.INVALID_PAYLOAD),
        ({"type": "x" * 2001}, ErrorCode.INVALID_PAYLOAD),
        ([], ErrorCode.INVALID_PAYLOAD),
        (None, ErrorCode.INVALID_PAYLOAD),
    ],
)
async def test_a_message_that_cannot_be_sent_is_an_error_with_a_code(message, code):
    async with make() as server, operate(server) as page:
        with pytest.raises(WseError) as raised:
            await page.call("send", message)
        assert raised.value.code == code


# A cluster.


async def test_a_page_shows_all_nodes_and_reaches_their_users():
    cluster = MemoryCluster()
    one, two = (make(broker=MemoryBroker(cluster)) for _ in range(2))
    async with one, two, connect(one, "ann") as ann, connect(two, "bob"), connect(two, "ann") as phone:  # noqa: SIM117
        async with operate(one) as page:
            seen = await page.call("overview")
            nodes = {node["node"]: node for node in seen["nodes"]}
            names = [server._hub.network.name for server in (one, two)]
            assert (seen["here"], seen["users"], set(nodes)) == (names[0], 2, set(names))
            assert [nodes[name]["connections"] for name in names] == [1, 2]
            assert all(nodes[name]["cluster"]["healthy"] for name in names)
            rows = (await page.call("users", {}))["rows"]
            by_node = {name: [row["name"] for row in rows if row["node"] == name] for name in names}
            assert by_node == {names[0]: ["ann"], names[1]: ["bob", "ann"]}
            devices = {row["node"]: row["conn_id"] for row in await page.call("devices", {"user": "sann"})}
            assert set(devices) == set(names)
            closed = asyncio.ensure_future(phone.when.closed.wait())
            assert await page.call("drop-device", {"conn_id": devices[names[1]]}) is True
            await soon(closed)
            heard = asyncio.ensure_future(ann.when.ignored.wait())
            await page.call("send", {"type": "news", "user": "sann"})
            assert (await soon(heard))[0] == "news"


async def test_pages_go_on_from_node_to_node():
    cluster = MemoryCluster()
    servers = [make(broker=MemoryBroker(cluster)) for _ in range(3)]
    async with servers[0], servers[1], servers[2], operate(servers[1]) as page:
        ordered = sorted(servers, key=lambda server: server._hub.network.name)
        expected = []
        for at, server in enumerate(ordered):
            for n in range((70, 0, 60)[at]):
                server._hub.identities[f"{at}-{n}"] = WseIdentity(server._hub, f"{at}-{n}", {})
                expected.append(f"{at}-{n}")
        found, after = [], None
        while True:
            answer = await page.call("users", {"after": after})
            assert len(answer["rows"]) <= console.PAGE
            found += [row["name"] for row in answer["rows"]]
            after = answer["next"]
            if after is None:
                break
        assert found == expected
        for server in servers:
            server._hub.identities.clear()


async def test_a_node_without_a_page_shows_what_top_shows_and_one_that_is_silent_that_it_is(monkeypatch):
    monkeypatch.setattr(console, "ANSWER_TIMEOUT", 0.2)
    cluster = MemoryCluster()
    one, two = make(broker=MemoryBroker(cluster)), make(broker=MemoryBroker(cluster), admin=None)
    async with one, two, connect(two, "bob"), operate(one) as page:
        name = two._hub.network.name
        async with asyncio.timeout(TIMEOUT):
            while True:  # on a busy machine, it may be too late with its answer
                (seen,) = [node for node in (await page.call("overview"))["nodes"] if node["node"] == name]
                if "silent" not in seen:
                    break
        assert (seen["connections"], seen["users"], "version" in seen) == (1, 1, False)
        assert one._console._answer_query('{"what": "of a newer version"}') is None
        two._hub.network.rpc.queries.clear()
        (seen,) = [node for node in (await page.call("overview"))["nodes"] if node["node"] == name]
        assert seen == {"node": name, "silent": True}
        assert (await page.call("users", {"search": "bob"})) == {"rows": [], "next": None}


# Many users.


@pytest.fixture
def no_collections():
    """What the garbage of all tests takes is nobody's fault here."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
async def test_fifty_thousand_users_do_not_block_the_event_loop(monkeypatch):
    async with make() as server, operate(server) as page:
        identities = server._hub.identities
        identities.update({f"user-{n}": WseIdentity(server._hub, f"user-{n}", {}) for n in range(50_000)})
        turns = []
        answer = console.Console._answer

        def timed(self, asked):
            start = thread_time()  # of the processor: a busy machine does not count
            found = answer(self, asked)
            turns.append(thread_time() - start)
            return found

        monkeypatch.setattr(console.Console, "_answer", timed)
        for wanted in ({}, {"search": "user-49999"}, {"search": "user-4999"}, {"search": "nobody"}):
            page_of = await page.call("users", wanted)
            assert len(page_of["rows"]) <= console.PAGE
        assert (await page.call("users", {"after": ["", 49_990]}))["rows"][-1]["name"] == "user-49999"
        assert await page.call("users", {"search": "nobody"}) == {"rows": [], "next": None}
        assert (await page.call("overview"))["users"] == 50_000
        assert len(turns) > 3 * 50_000 // SLICE
        assert max(turns) < 0.02
        identities.clear()


# The page.


@pytest.fixture
def page():
    return make().admin._page


def get(page, path, **headers):
    return page.answer(HttpCall("GET", path, CompactHeaders([(n.replace("_", "-"), v) for n, v in headers.items()])))


@pytest.mark.parametrize(
    ("path", "base"),
    [("/admin", "./admin/"), ("/admin/", "./"), ("/", "./"), ("/x/ops", "./ops/"), ('/a:"<b>', "./a%3A%22%3Cb%3E/")],
)
def test_the_page_finds_its_files_below_itself(page, path, base):
    text = get(page, path).body.decode()
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == [f"{base}console.css", f"{base}console.js"]


def test_its_policy_lets_nothing_in_from_elsewhere_and_nothing_inline(page):
    headers = get(page, "/admin").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    text = get(page, "/admin").body.decode()
    assert not re.search(r"<style|style=|<script(?![^>]*src)| on\w+=", text)
    script = get(page, "/admin/console.js").body.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc", script)


def test_its_files_have_types_and_are_small(page):
    files = {name: get(page, f"/admin/{name}") for name in ("", "console.css", "console.js", "wse.js")}
    types = [reply.headers["Content-Type"] for reply in files.values()]
    assert types == [f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript", "javascript")]
    assert sum(len(reply.body) for name, reply in files.items() if name != "wse.js") < 40 * 1024
    for name, reply in files.items():
        again = get(page, f"/admin/{name}", If_None_Match=reply.headers["ETag"])
        assert (again.status, again.body) == (304, None)
        assert get(page, f"/admin/{name}", If_None_Match='"other"').status == 200


async def test_as_an_asgi_application_it_works_where_it_is_mounted():
    server = make()
    transport = httpx.ASGITransport(app=server.admin)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as web:
        answer = await web.get("/anywhere/ops")
        assert "./ops/console.js" in answer.text
        assert answer.headers["content-security-policy"]
        assert (await web.get("/anywhere/ops/console.js")).headers["content-type"].startswith("text/javascript")
        head = await web.head("/anywhere/ops")
        assert (head.status_code, head.content) == (200, b"")
        assert (await web.get("/ops", headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
        assert (await web.post("/ops")).status_code == 405


# On the built-in listener.


async def test_the_listener_serves_the_page_and_its_websocket_at_its_path_only():
    async with make(port=0, path="/ws", admin_path="/ops/") as server:
        url = f"ws://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as web:
            for path in ("/ops", "/ops/", "/ops/console.css", "/ops/console.js", "/ops/wse.js"):
                assert (await web.get(path)).status_code == 200
            for path in ("/admin", "/ops/wse-resume.js", "/ops/../x", "/"):
                assert (await web.get(path)).status_code == 404
            assert (await web.post("/ops")).status_code == 405
        for path in ("/ops", "/ops/"):
            async with WseClient(url + path, identity={"name": "grace", "key": KEY}) as page:
                assert (await page.call("overview"))["users"] == 0
        async with WseClient(url + "/ws", identity="ann") as client:
            with pytest.raises(WseError):
                await client.call("overview")
        with pytest.raises(WseError):
            await WseClient(url + "/ops/console.js", identity={"name": "grace", "key": KEY}).connect()


def test_a_path_begins_with_a_slash():
    with pytest.raises(ValueError, match="slash"):
        make(admin_path="admin")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil"])
async def test_pages_of_other_origins_may_not_operate_even_where_the_application_lets_them_in(origin):
    async with make(port=0, origins="*") as server:
        headers = {"Origin": origin}
        async with WseClient(server.url, identity="ann", headers=headers):
            pass
        identity = {"name": "grace", "key": KEY}
        with pytest.raises(WseError) as raised:
            await WseClient(f"{server.url}/admin", identity=identity, headers=headers).connect()
        assert raised.value.code == ErrorCode.WS_CLIENT_ERROR
        own = {"Origin": f"http://127.0.0.1:{server.port}"}
        async with WseClient(f"{server.url}/admin", identity=identity, headers=own) as page:
            assert await page.call("overview")


# Attacks.


async def test_strangers_at_one_address_cannot_take_all_places():
    async with make(port=0) as server:
        url = f"{server.url}/admin"
        places = [asyncio.open_connection("127.0.0.1", server.port) for _ in range(LIMITS.connections_per_address + 5)]
        assert LIMITS.connections_per_address < LIMITS.unauthenticated < LIMITS.connections
        sockets = await asyncio.gather(*places)
        request = (
            b"GET /admin HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Protocol: wse-default-json\r\n\r\n"
        )
        for _, writer in sockets:
            writer.write(request)
        for reader, _ in sockets:
            assert b"101" in await soon(reader.readline())
        backstage = server._console.backstage
        assert backstage.stats().limits == {"connections_per_address": 5}
        async with WseClient(server.url, identity="ann") as client:  # the application is not affected
            assert client.status == "READY"
        for _, writer in sockets:
            writer.transport.abort()
        async with asyncio.timeout(TIMEOUT):
            while backstage.stats().connections:
                await asyncio.sleep(0)
        async with WseClient(url, identity={"name": "grace", "key": KEY}) as page:
            assert await page.call("overview")


async def test_a_page_that_floods_is_closed():
    async with make() as server, operate(server) as page:
        closed = asyncio.ensure_future(page.when.closed.wait())
        for _ in range(LIMITS.message_burst + 5):
            page.send("flood")
        assert await soon(closed) == (1008, "wse.limit.message-rate")


@pytest.mark.parametrize("size", [10_000, 100_000])
async def test_a_stranger_cannot_send_much(size):
    async with make() as server:
        with pytest.raises(WseError) as raised:
            async with operate(server, identity={"name": "x" * size, "key": KEY}):
                pass
        assert raised.value.details["code"] == 1009


async def test_markup_in_names_goes_to_the_page_as_it_is():
    markup = "<img src=x onerror=alert(1)>"
    async with make() as server, connect(server, markup), operate(server) as page:
        server.room(markup).add(server.clients[markup])
        (user,) = (await page.call("users", {"search": "<img"}))["rows"]
        (room,) = (await page.call("rooms", {}))["rows"]
        assert user["name"] == room["name"] == markup
        (device,) = await page.call("devices", {"user": user["ref"]})
        assert device["rooms"] == [markup]
