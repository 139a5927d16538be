"""The private names of redis-py that `wse.brokers.redis.private` uses: each must exist, and do what WSE expects."""

from __future__ import annotations

import ast
import inspect
import tomllib
from pathlib import Path

from redis.asyncio.connection import AbstractConnection

from wse.brokers.redis import broker, connection, private, wire

ROOT = Path(__file__).parents[2]


def private_names(module):
    """Attributes that begin with an underscore, of anything but the module's own `self`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "RedisConnection"))
    }


def test_a_connection_has_a_writer():
    assert "_writer" in AbstractConnection.__slots__


def test_only_one_module_uses_private_names():
    assert private_names(private) == {"_writer"}
    for module in (broker, connection, wire):
        assert private_names(module) == set(), module.__name__


def test_the_version_of_redis_py_is_capped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["redis"] == ["redis[hiredis]>=7.1,<9"]
