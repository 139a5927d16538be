"""The private names of nats-py that `wse.brokers.nats.private` uses: each must exist, and do what WSE expects."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.transport import Transport

from wse.brokers.nats import private, wire

ROOT = Path(__file__).parents[2]

OF_THE_CLIENT = ("_connect_command", "_current_server", "_pongs", "_server_info", "_transport")


@pytest.mark.parametrize("name", OF_THE_CLIENT)
def test_the_client_has(name):
    assert hasattr(Client(), name)


def test_a_transport_has_only_the_methods_that_ours_has():
    assert Transport.__abstractmethods__ <= {*vars(wire.Wire)}


async def test_the_client_takes_pongs_in_turn():
    client = Client()
    first, second = [asyncio.get_running_loop().create_future() for _ in range(2)]
    client._pongs = [first, second]
    await client._process_pong()
    assert (first.done(), second.done()) == (True, False)


def private_names(module):
    """Attributes that begin with an underscore, of anything but the module's own `self`."""
    tree = ast.parse(inspect.getsource(module))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "NatsConnection"))
    }


@pytest.mark.parametrize(
    "module", sorted({path.stem for path in Path(private.__file__).parent.glob("[a-z]*.py")} - {"private"})
)
def test_no_other_module_uses_private_names(module):
    assert private_names(importlib.import_module(f"wse.brokers.nats.{module}")) == set()


def test_this_test_names_all_of_them():
    tree = ast.parse(inspect.getsource(private))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in names if name.startswith("_") and name != "__init__"} == {*OF_THE_CLIENT}


def test_the_version_of_nats_py_is_capped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["nats"] == ["nats-py>=2.16,<2.17"]
