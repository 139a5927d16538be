"""The configurations of examples/deploy/, under the real programs that they are for."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as ws_connect

from support.net import ClientLog, ServerLog, hi, make_server, soon
from support.programs import ROOT, free_port
from wse import WseClient

DEPLOY = ROOT / "examples" / "deploy"
PATIENCE = 30.0
FORGED = "198.51.100.7"


def nginx_config(port: int, upstream: int, folder: Path) -> Path:
    """The repository's file in the smallest configuration of nginx, with ports of the test's own."""
    text = (DEPLOY / "nginx.conf").read_text()
    text, found = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", text)
    assert found == 1
    site = text.replace("127.0.0.1:4200", f"127.0.0.1:{upstream}")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;\n"
        f"events {{ worker_connections 256; }}\nhttp {{ access_log off;\n{temporary}\n{site} }}\n"
    )
    return path


def caddy_config(port: int, upstream: int, folder: Path) -> Path:
    """The repository's file, without TLS, administration and anything outside the test's folder."""
    text = (DEPLOY / "Caddyfile").read_text()
    text, found = re.subn(r"(?m)^chat\.example\.com \{", f"http://127.0.0.1:{port} {{", text)
    assert found == 1
    path = folder / "Caddyfile"
    path.write_text(f"{{\n\tadmin off\n\tstorage file_system {folder}\n}}\n" + text.replace("4200", str(upstream)))
    return path


def nginx_command(port: int, upstream: int, folder: Path) -> list[str]:
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(nginx_config(port, upstream, folder))]


def caddy_command(port: int, upstream: int, folder: Path) -> list[str]:
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(caddy_config(port, upstream, folder))]


PROXIES = {"nginx": nginx_command, "caddy": caddy_command}


@contextmanager
def ended(process: subprocess.Popen):
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(params=PROXIES)
async def behind(request, tmp_path, monkeypatch):
    """`server, url`: a server, and where it is reached by way of the proxy."""
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param} here (on Debian, tests/deploy/install_proxies.sh installs it)")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    server = make_server(path="/ws", conns_per_user=10, trusted_proxies=["127.0.0.1"])
    port = free_port()
    async with server:
        command = PROXIES[request.param](port, server.port, tmp_path)
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
            yield server, f"ws://127.0.0.1:{port}/ws"


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


# What cannot be run here is at least read.


def test_the_systemd_unit_is_one_that_systemd_understands(tmp_path):
    text = (DEPLOY / "wse.service").read_text()
    options = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert float(options["TimeoutStopSec"]) > float(options["ExecStart"].partition("--grace ")[2]) + 5
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    # It wants the program to exist.
    unit = tmp_path / "wse.service"
    unit.write_text(text.replace("/srv/chat/.venv/bin/wse", shutil.which("env") or "").replace("/srv/chat", "/tmp"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
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


def test_the_container_file_installs_an_extra_that_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"wse\[([\w,]+)\]", (DEPLOY / "Containerfile").read_text()):
        assert set(extra.split(",")) <= set(extras)


def test_kubernetes_waits_longer_than_closing_may_take():
    yaml = pytest.importorskip("yaml")
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    grace = 10  # of the container file
    notice = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > notice + grace + 5
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 4200}
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert "sessionAffinity" not in service["spec"]
