"""The direction of imports (see CONTRIBUTING.md): who may know whom, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

import wse

SOURCE = Path(wse.__file__).parent
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

# Values and ports: what every storey of the core and every adapter stands on.
GROUND = {
    "backoff",
    "errors",
    "reading",
    "tasks",
    "types",
    "validation",
    "version",
    *(
        f"core.{name}"
        for name in (
            "admission",
            "closing",
            "folding",
            "heartbeat",
            "inbox",
            "limits",
            "names",
            "packed",
            "ports",
            "resume",
            "stats",
            "urls",
        )
    ),
}

# What each part may import of wse, the most specific prefix first.
ALLOWED = {
    "errors.py": set(),
    "types.py": set(),
    "backoff.py": set(),
    "reading.py": set(),
    "tasks.py": set(),
    "scheduler.py": GROUND,
    "validation/": GROUND,
    "threads.py": set(),
    "blocking.py": {"core.session.asking", "errors", "threads"},
    "version.py": set(),
    # The storeys of the core.
    "core/": GROUND,
    "core/session/": GROUND | {"core.session"},
    "core/hub/": GROUND | {"core.session", "core.hub"},
    "core/cluster/": GROUND | {"core.session", "core.hub", "core.cluster"},
    # What handlers say of themselves, in front of a session.
    "typed/": GROUND | {"core.session", "threads", "typed"},
    # What is made of what they say.
    "contract/": GROUND | {"contract", "typed.operations"},
    # Adapters: each knows ports, values, and its own parts.
    "protocols/": GROUND | {"protocols"},
    "transports/": GROUND | {f"transports.{name}" for name in ("awaited", "certificate", "request", "tcp")},
    "transports/picows/": GROUND
    | {f"transports.{name}" for name in ("certificate", "deflate", "picows", "request", "tcp")},
    "brokers/": GROUND | {"brokers.memory_store", "brokers.placement"},
    "brokers/__init__.py": GROUND | {"brokers"},  # finds the one for a URL
    "brokers/nats/": GROUND | {"brokers.nats", "brokers.placement", "brokers.reconnecting"},
    "brokers/redis/": GROUND | {"brokers.redis", "brokers.placement", "brokers.reconnecting"},
    "http_api/": GROUND | {"http_api", "scheduler"},
    # Observation: reads the core.
    "metrics/": GROUND | {"core", "metrics"},
    "admin/": GROUND | {"core", "metrics.survey", "admin"},
    "otel.py": GROUND | {"client.client", "server.server"},
    "prometheus.py": GROUND | {"metrics.families", "server.server"},
    # What puts core and adapters together.
    "client/": GROUND
    | {"blocking", "core.session", "client", "protocols", "scheduler", "threads", "transports", "typed"},
    "server/": GROUND
    | {
        "core",
        "admin",
        "blocking",
        "brokers",
        "contract",
        "http_api",
        "metrics",
        "prometheus",
        "protocols",
        "scheduler",
        "server",
        "threads",
        "transports",
        "typed",
    },
    "server/acceptor.py": GROUND | {"core.hub"},
    "server/files.py": set(),
    "server/watchdog.py": set(),
    "publisher/": GROUND
    | {"brokers", "core.cluster", "core.hub", "core.session", "protocols", "publisher", "scheduler"},
    # What stands on the server.
    "auth/": GROUND | {"core.hub", "auth", "server.server"},
    "cli/": GROUND
    | {
        "brokers.memory",
        "cli",
        "client",
        "contract",
        "core.hub",
        "metrics",
        "prometheus",
        "protocols",
        "publisher",
        "server",
    }
    | {"transports.picows.http"},
    "cli/top.py": GROUND | {"brokers", "cli.output", "core.cluster.envelope"},
    "cli/connection.py": GROUND | {"auth", "client", "protocols"},
    "uvicorn.py": {"transports.asgi"},
    "__main__.py": {"cli"},
    "testing.py": GROUND | {"client", "server", "transports"},
    "__init__.py": GROUND | {"client", "core", "protocols", "publisher", "server", "transports", "typed"},
}

# Which third-party libraries a part may import; all others belong to the standard library.
LIBRARIES = {
    "core/": {"msgspec"},
    "core/hub/handshake.py": {"typing_extensions"},  # for type checkers
    "admin/": {"msgspec"},
    "admin/page.py": {"aiohttp"},
    "contract/": {"msgspec"},
    "contract/with_pydantic.py": {"pydantic"},
    "protocols/": {"msgspec"},
    "typed/decoding.py": {"msgspec"},
    "validation/": {"msgspec"},
    "validation/with_pydantic.py": {"pydantic", "pydantic_core"},
    "transports/picows/": {"aiofastnet", "multidict", "picows", "python_socks"},
    "transports/aiohttp.py": {"aiohttp"},
    "auth/": {"scramp"},
    "brokers/nats/bucket.py": {"nats"},
    "brokers/nats/connection.py": {"nats"},
    "brokers/nats/hints.py": {"nats"},
    "brokers/nats/private.py": {"nats"},
    "brokers/nats/requests.py": {"nats"},
    "brokers/nats/store.py": {"nats"},
    "brokers/nats/stored.py": {"nats"},
    "brokers/nats/wire.py": {"nats"},
    "brokers/redis/": {"hiredis", "redis"},
    "publisher/publisher.py": {"msgspec"},
    "cli/": {"click", "msgspec"},
    "cli/commands.py": {"click", "uvloop"},
    "cli/reload.py": {"click", "watchfiles"},
    "otel.py": {"opentelemetry"},
    "prometheus.py": {"prometheus_client"},
    "uvicorn.py": {"uvicorn"},
}

SOCKETS_AND_LOOPS = {"socket", "ssl", "select", "selectors"}


def imports(module: str) -> set[str]:
    """All modules that one imports, those for type checking included."""
    names = set()
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("wse"))
    return names


def rule(rules: dict[str, set[str]], module: str) -> set[str]:
    matching = [prefix for prefix in rules if module.startswith(prefix) or module == prefix]
    return rules[max(matching, key=len)] if matching else set()


def test_every_module_has_a_rule() -> None:
    assert [module for module in MODULES if not any(module.startswith(prefix) for prefix in ALLOWED)] == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_what_lies_below_them(module: str) -> None:
    allowed = {f"wse.{name}" for name in rule(ALLOWED, module)} | {"wse"}
    of_wse = {name for name in imports(module) if name == "wse" or name.startswith("wse.")}
    assert {
        name for name in of_wse if not any(f"{name}.".startswith(f"{part}.") for part in allowed - {"wse"})
    } == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_only_in_its_own_adapter(module: str) -> None:
    tops = {name.partition(".")[0] for name in imports(module)}
    foreign = tops - sys.stdlib_module_names - {"wse", "annotationlib"}  # which Python has from 3.14 on
    assert foreign <= rule(LIBRARIES, module)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("core/")])
def test_the_core_knows_no_sockets_and_runs_no_event_loop(module: str) -> None:
    tree = ast.parse((SOURCE / module).read_text())
    assert not {name.partition(".")[0] for name in imports(module)} & SOCKETS_AND_LOOPS
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "asyncio"
    }
    assert used <= {"Future", "Task"}, "the core has futures and tasks handed in, and asks asyncio for nothing"


def test_the_package_itself_only_re_exports() -> None:
    body = ast.parse((SOURCE / "__init__.py").read_text()).body
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body)


def test_everything_public_is_there() -> None:
    assert {
        "Backoff", "BlockingClient", "BlockingPublisher", "Call", "Challenge", "Channel", "ClientProcedure",
        "ClientStatus", "CloseReason", "ClusterSettings", "Compression", "Credentials", "CurrentCall", "Depends",
        "DeviceInfo", "ErrorCode", "Event", "ExposeErrors", "ExtensionTypes", "Handshake", "Heartbeat", "Inbox",
        "InternalTypes", "Kept", "KeptMessage", "Limits", "Loss", "Operation", "Overflow", "Protocol", "Publisher",
        "ReadyState", "Resume", "Room", "Router", "Signal", "Stats", "Stream", "WseClient", "WseConnection", "WseError",
        "WseIdentity",
        "WseJSON", "WseMsgpack", "WseServer", "current_call", "js_client_path", "shield_deadline",
    } == set(wse.__all__)  # fmt: skip
    assert all(hasattr(wse, name) for name in wse.__all__)
