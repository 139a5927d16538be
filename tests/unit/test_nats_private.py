"""The private names of nats-py that `wse.brokers.nats.private` uses: each must exist, and do what WSE expects."""

from __future__ import annotations

import ast
import inspect
import tomllib
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from wse.brokers.nats import broker, connection, private

ROOT = Path(__file__).parents[2]

OF_THE_CLIENT = ("_connect_command", "_current_server", "_send_ping", "_server_info")
OF_A_SUBSCRIPTION = ("_pending_queue",)


@pytest.mark.parametrize("name", OF_THE_CLIENT)
def test_the_client_has(name):
    assert hasattr(Client(), name)


@pytest.mark.parametrize("name", OF_A_SUBSCRIPTION)
def test_a_subscription_has(name):
    assert hasattr(Subscription(Client()), name)


def test_a_ping_takes_the_future_of_its_pong():
    assert list(inspect.signature(Client._send_ping).parameters) == ["self", "future"]


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


def test_no_other_module_uses_private_names():
    assert private_names(connection) == set()
    assert private_names(broker) == set()


def test_this_test_names_all_of_them():
    tree = ast.parse(inspect.getsource(private))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    assert used == {*OF_THE_CLIENT, *OF_A_SUBSCRIPTION}


def test_the_version_of_nats_py_is_capped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["nats"] == ["nats-py>=2.16,<2.17"]
