"""The configurations of examples/deploy/, under the real programs that they are for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as ws_connect

from support.brokers import ENGINES
from support.net import ClientLog, RawSocket, ServerLog, accept_all, hi, make_server, soon
from support.programs import ROOT, free_port
from wse import Heartbeat, Resume, WseClient, WseServer
from wse.cli.supervisor import KILL_TIMEOUT

DEPLOY = ROOT / "examples" / "deploy"
PATIENCE = 60.0
HASTE = 40
"""How many times shorter timeouts and the heartbeat's interval are in the test that waits for them."""
Edit = Callable[[str], str]
FORGED = "198.51.100.7"


def nginx_command(port: int, upstreams: list[int], folder: Path, haste: int, edit: Edit) -> list[str]:
    """nginx with the repository's file in the smallest configuration, with ports of the test's own."""
    text = edit((DEPLOY / "nginx.conf").read_text())
    text, found = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", text)
    assert found == 1
    first, *more = [f"server 127.0.0.1:{upstream};" for upstream in upstreams if upstream is not None] or [""]
    text, found = re.subn(r"server 127\.0\.0\.1:4200;", first, text)
    assert found == bool(first)
    if more:  # they stand where the file has an example of them
        text, found = re.subn(r"# server 10\.0\.0\.2:4200;", " ".join(more), text)
        assert found == 1
    text = re.sub(r"_timeout (\d+)s;", lambda found: f"_timeout {int(found[1]) * 1000 // haste}ms;", text)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;\n"
        f"events {{ worker_connections 256; }}\nhttp {{ access_log off;\n{temporary}\n{text} }}\n"
    )
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)]


def caddy_command(port: int, upstreams: list[int], folder: Path, haste: int, edit: Edit) -> list[str]:
    """Caddy with the repository's file, without TLS, administration and anything outside the test's folder."""
    text = edit((DEPLOY / "Caddyfile").read_text())
    text, found = re.subn(r"(?m)^chat\.example\.com \{", f"http://127.0.0.1:{port} {{", text)
    assert found == 1
    text, found = re.subn(r"127\.0\.0\.1:4200", " ".join(f"127.0.0.1:{upstream}" for upstream in upstreams), text)
    assert found == 1
    path = folder / "Caddyfile"
    path.write_text(f"{{\n\tadmin off\n\tstorage file_system {folder}\n}}\n" + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(path)]


PROXIES = {"nginx": nginx_command, "caddy": caddy_command}


@contextmanager
def ended(process: subprocess.Popen):
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(params=PROXIES)
def proxy(request, tmp_path, monkeypatch):
    """`proxy(*servers)` runs the proxy in front of servers; a context manager of the URL to reach them at.

    Its timeouts are `haste` times shorter than in the file; `edit` changes the file's text.
    """
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param} here (on Debian, tests/deploy/install_programs.sh installs it)")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    @asynccontextmanager
    async def proxy(*servers, haste=1, edit=str):
        port = free_port()
        command = PROXIES[request.param](port, [server.port for server in servers], tmp_path, haste, edit)
        with (tmp_path / "log").open("wb") as log, ended(subprocess.Popen(command, stdout=log, stderr=log)) as process:
            async with asyncio.timeout(PATIENCE):
                while True:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except ConnectionRefusedError:
                        await asyncio.sleep(0.02)
                    else:
                        writer.close()
                        break
            yield f"ws://127.0.0.1:{port}/ws"

    return proxy


@pytest.fixture
async def behind(proxy):
    """`server, url`: a server, and where it is reached by way of the proxy."""
    server = make_server(path="/ws", conns_per_user=10, trusted_proxies=["127.0.0.1"])
    async with server, proxy(server) as url:
        yield server, url


async def test_calls_in_both_directions_and_pushes_pass(behind):
    server, url = behind
    log = ServerLog(server)
    server.register("double", lambda conn, payload: payload * 2)
    client = WseClient(url, identity="ann")
    client.register("name", lambda payload: f"{payload} of ann")
    heard = ClientLog(client)
    client.channel.on("news", heard.adder("news"))
    async with client:
        assert await client.call("double", 21) == 42
        conn = await log.conn("ann")
        assert await conn.call("name", "device") == "device of ann"
        server.broadcast("news", [1, 2])
        assert await heard.until("news") == ("news", [1, 2])


async def test_a_large_message_passes_both_ways(behind):
    server, url = behind
    server.register("echo", lambda conn, payload: payload)
    text = "wse" * 250_000
    async with WseClient(url, identity="ann") as client:
        assert await soon(client.call("echo", text)) == text


async def test_code_and_reason_of_a_close_pass_both_ways(behind):
    server, url = behind
    log = ServerLog(server)
    client = WseClient(url, identity="ann")
    heard = ClientLog(client)
    await client.connect()
    (await log.conn("ann")).drop("enough for today", 4321)
    assert await heard.until("closed") == ("closed", 4321, "enough for today")
    async with WseClient(url, identity="bob") as client:
        await client.close("good night")
    assert await log.until("disconnected", "bob") == ("disconnected", "bob", 1000, "good night")


async def test_the_proxy_tells_the_clients_address_last(behind):
    server, url = behind
    log = ServerLog(server)
    async with WseClient(url, identity="ann", headers={"X-Forwarded-For": FORGED}):
        conn = await log.conn("ann")
        told = [part.strip() for part in conn.request.headers["X-Forwarded-For"].split(",")]
        # What a client claims stands before it, or is dropped.
        assert told in ([FORGED, "127.0.0.1"], ["127.0.0.1"])


async def test_the_clients_own_address_is_the_one_that_the_trusted_proxy_saw(behind):
    server, url = behind
    log = ServerLog(server)
    async with ws_connect(
        url,
        subprotocols=["wse-default-json"],
        additional_headers={"X-Forwarded-For": FORGED},
        local_addr=("127.0.0.5", 0),
        proxy=None,
    ) as socket:
        await socket.send(hi("ann"))
        assert (await log.conn("ann")).remote_addr == "127.0.0.5"


async def test_the_host_passes_as_the_client_sent_it(behind):
    server, url = behind
    log = ServerLog(server)
    async with WseClient(url, identity="ann"):
        assert (await log.conn("ann")).request.headers["Host"] == url.removeprefix("ws://").removesuffix("/ws")


@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)  # the other one has no timeout
async def test_a_connection_that_is_silent_but_for_the_heartbeat_is_not_cut(proxy):
    server = make_server(path="/ws", heartbeat=Heartbeat(interval=Heartbeat().interval / HASTE))
    log = ServerLog(server)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        url = await stack.enter_async_context(proxy(server, haste=HASTE))
        options = {"subprotocols": ["wse-default-json"], "proxy": None, "ping_interval": None}
        socket = await stack.enter_async_context(ws_connect(url, **options))
        await socket.send(hi("ann"))
        conn = await log.conn("ann")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.wait_closed(), 1.5 * nginx_read_timeout() / HASTE)
        conn.send("still", "here")
        while json.loads(await soon(socket.recv()))[:2] != ["still", "here"]:
            pass


@pytest.mark.parametrize("engine", ENGINES)
async def test_clients_of_two_nodes_behind_one_proxy_reach_each_other(engine, proxy, request):
    engine = request.getfixturevalue(ENGINES[engine])
    broker = engine.url()
    nodes = [make_server(path="/ws", broker=broker) for _ in range(2)]
    for node in nodes:
        node.channel.on("tell", lambda conn, message, node=node: node.send(message[0], "told", message[1]))
        node.channel.on("tell all", lambda conn, text, node=node: node.broadcast("told", text, exclude=conn))
        node.register("who", lambda conn, payload, node=node: collect(node.users()))
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        url = await stack.enter_async_context(proxy(*nodes))
        clients, told = {}, {}
        while not all(node.clients for node in nodes):  # the proxy chooses the node
            cid = f"user {len(clients)}"
            assert len(clients) < 100, "one node gets nobody"
            clients[cid] = await stack.enter_async_context(WseClient(url, identity=cid))
            told[cid] = ClientLog(clients[cid])
            clients[cid].channel.on("told", told[cid].adder("told"))
        ann, bob = [next(iter(node.clients)) for node in nodes]
        clients[ann].send("tell", [bob, "hello"])
        assert await told[bob].until("told") == ("told", "hello")
        clients[bob].send("tell all", "hello to all")
        for cid in clients.keys() - {bob}:
            assert await told[cid].until("told") == ("told", "hello to all")
        for cid in (ann, bob):
            assert await clients[cid].call("who") == sorted(clients)


async def collect(users):
    return sorted([user async for user in users])


@pytest.fixture
def folder():
    """A folder whose path is short: that of a Unix socket has at most some hundred bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def on_unix_socket(text: str, place: Path) -> str:
    """The configuration of nginx with its other line for the server."""
    text, found = re.subn(r"(?m)^ +server 127\.0\.0\.1:4200;\n", "", text)
    assert found == 1
    text, found = re.subn(r"# server unix:/run/wse/chat\.sock;", f"server unix:{place};", text)
    assert found == 1
    return text


@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
async def test_nginx_reaches_the_server_by_a_unix_socket(proxy, folder):
    folder.chmod(0o755)  # nginx gives up root, if it is started by root
    place = folder / "chat.sock"
    server = WseServer(accept_all, unix=place, unix_mode=0o666, path="/ws", trusted_proxies="unix")
    log = ServerLog(server)
    server.register("double", lambda conn, payload: payload * 2)
    edit = partial(on_unix_socket, place=place)
    async with server, proxy(server, edit=edit) as url, WseClient(url, identity="ann") as client:
        assert await soon(client.call("double", "x" * 400_000)) == "x" * 800_000
        assert (await log.conn("ann")).remote_addr == "127.0.0.1"


async def test_a_server_takes_the_socket_of_systemd(folder):
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("there is no systemd-socket-activate here")
    place = folder / "chat.sock"
    command = ["systemd-socket-activate", f"--listen={place}", sys.executable, str(DEPLOY / "activated.py")]
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            async with asyncio.timeout(PATIENCE):
                while not place.exists():
                    assert process.poll() is None, (folder / "log").read_text()
                    await asyncio.sleep(0.01)
            # The connection that starts the server waits in the socket meanwhile.
            async with WseClient(f"ws+unix://{place}:/ws", identity="ann", timeout=PATIENCE):
                process.terminate()  # it is the server now
                assert await asyncio.to_thread(process.wait, PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


# What cannot be run here is at least read.


def test_the_systemd_unit_is_one_that_systemd_understands(tmp_path):
    text = (DEPLOY / "wse.service").read_text()
    options = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    grace = float(options["ExecStart"].partition("--grace ")[2])
    assert float(options["TimeoutStopSec"]) > grace + Resume().drain + KILL_TIMEOUT
    scheme = options["ExecStart"].partition("--broker ")[2].partition("://")[0]
    assert re.search(rf"wse\[[\w,]*\b{scheme}\b", text)  # it tells to install the library of its broker
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    # It wants the program to exist.
    unit = tmp_path / "wse.service"
    unit.write_text(text.replace("/srv/chat/.venv/bin/wse", shutil.which("env") or "").replace("/srv/chat", "/tmp"))
    shutil.copy(DEPLOY / "wse.socket", tmp_path)
    for name in ("wse.service", "wse.socket"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["wse.service", "Containerfile"])
def test_the_command_that_they_start_knows_its_options(name):
    from wse.cli.commands import wse

    text = (DEPLOY / name).read_text()
    line = next(line for line in text.splitlines() if line.startswith(("ExecStart", "ENTRYPOINT")))
    words = json.loads(line.partition(" ")[2]) if name == "Containerfile" else line.partition("=")[2].split()
    command = wse.commands[words[1]]
    command.make_context(words[1], words[2:])


def option(words: list[str], name: str) -> str:
    """What follows it on a command line."""
    return words[words.index(name) + 1]


def entrypoint() -> list[str]:
    """The command that a container runs."""
    (line,) = re.findall(r"(?m)^ENTRYPOINT (.*)$", (DEPLOY / "Containerfile").read_text())
    return json.loads(line)


def nginx_read_timeout() -> float:
    """Seconds of silence after which nginx ends a WebSocket."""
    found = re.findall(r"proxy_read_timeout (\d+)s;", (DEPLOY / "nginx.conf").read_text())
    return float(found[0]) if found else 60.0


def test_nginx_waits_longer_than_a_silent_connection_is_without_a_ping():
    usual = Heartbeat()
    # Connections are looked at four times in the shorter of the two times, so a ping may be late by so much.
    assert nginx_read_timeout() > usual.interval + min(usual.interval, usual.timeout) / 4


def test_proxies_look_for_the_server_at_the_port_of_the_systemd_unit():
    (line,) = re.findall(r"(?m)^ExecStart=(.*)$", (DEPLOY / "wse.service").read_text())
    port = option(line.split(), "--port")
    assert re.findall(r"127\.0\.0\.1:(\d+)", (DEPLOY / "nginx.conf").read_text()) == [port]
    assert re.findall(r"127\.0\.0\.1:(\d+)", (DEPLOY / "Caddyfile").read_text()) == [port]


def test_the_container_file_installs_an_extra_that_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"wse\[([\w,]+)\]", (DEPLOY / "Containerfile").read_text()):
        assert set(extra.split(",")) <= set(extras)


@pytest.fixture
def kubernetes():
    """The Deployment, its pod, the pod's container, and the Service."""
    yaml = pytest.importorskip("yaml")
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    return deployment, pod, container, service


def test_kubernetes_waits_longer_than_closing_may_take(kubernetes):
    _, pod, container, _ = kubernetes
    command, notice = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    most = float(notice) + float(option(entrypoint(), "--grace")) + Resume().drain + KILL_TIMEOUT
    assert pod["spec"]["terminationGracePeriodSeconds"] > most


def test_kubernetes_looks_for_the_server_at_the_port_of_the_container(kubernetes):
    deployment, pod, container, service = kubernetes
    port = int(option(entrypoint(), "--port"))
    assert re.findall(r"(?m)^EXPOSE (\d+)$", (DEPLOY / "Containerfile").read_text()) == [str(port)]
    assert option(entrypoint(), "--host") == "0.0.0.0"  # what looks for it is outside
    assert [each["containerPort"] for each in container["ports"]] == [port]
    probes = [container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")]
    assert [probe["port"] for probe in probes] == [port, port]
    assert [each["targetPort"] for each in service["spec"]["ports"]] == [port]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert "sessionAffinity" not in service["spec"]


async def test_a_server_that_closes_is_alive_but_not_ready_to_the_probes_of_kubernetes(kubernetes):
    _, _, container, _ = kubernetes

    async def answers():
        statuses = []
        for name in ("readinessProbe", "livenessProbe"):
            async with await RawSocket.open(server.url) as socket:
                statuses.append((await socket.request(container[name]["httpGet"]["path"]))[0])
        return statuses

    async with make_server() as server:
        assert await answers() == [200, 200]
        closing = asyncio.ensure_future(server.close(notice=PATIENCE))
        async with asyncio.timeout(PATIENCE):
            while server.ready:
                await asyncio.sleep(0)
        assert await answers() == [503, 200]
        closing.cancel()
        await asyncio.wait([closing])


def test_kubernetes_starts_the_container_with_options_that_the_command_knows(kubernetes):
    from wse.cli.commands import wse

    _, _, container, _ = kubernetes
    words = [*entrypoint(), *container["args"]]
    wse.commands[words[1]].make_context(words[1], words[2:])


def test_the_container_has_the_library_of_the_broker_that_kubernetes_names(kubernetes):
    _, _, container, _ = kubernetes
    scheme = option(container["args"], "--broker").partition("://")[0]
    (extras,) = re.findall(r"wse\[([\w,]+)\]", (DEPLOY / "Containerfile").read_text())
    assert {"nats": "nats", "redis": "redis"}[scheme] in extras.split(",")
