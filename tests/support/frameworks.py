"""The web servers that WSE runs inside of, each running in the event loop of the test.

Each is a context manager that serves an ASGI application (or an aiohttp handler) on a free port of 127.0.0.1 and
yields that port. They are the servers' own protocols on a real socket; whole processes with signals and workers are
tested in tests/frameworks.
"""

from __future__ import annotations

import asyncio
import warnings
from contextlib import asynccontextmanager

import uvicorn
from aiohttp import web
from granian.constants import Interfaces
from granian.server.embed import Server as GranianServer
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig

from support.programs import PATIENCE, free_port


def uvicorn_config(app, **options):
    options.setdefault("port", 0)
    # By default, it would take the peer's address from the headers of a proxy on this host.
    return uvicorn.Config(app, log_config=None, access_log=False, proxy_headers=False, **options)


@asynccontextmanager
async def uvicorn_process(app, **options):
    """uvicorn as its command runs it, with its main loop and its shutdown; yields the server."""
    server = uvicorn.Server(uvicorn_config(app, **options))
    serving = asyncio.ensure_future(server.serve())
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        yield server
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def uvicorn_asgi(app, ws, root_path="", **options):
    """uvicorn, with one of its WebSocket implementations.

    Started by its own `startup`. Its main loop and `shutdown`, which only poll and sleep, are left out.
    """
    config = uvicorn_config(app, ws=ws, root_path=root_path, lifespan="off", **options)
    with warnings.catch_warnings():
        if ws == "websockets":  # deprecated: by uvicorn, and by websockets when it is imported and per connection
            warnings.filterwarnings("ignore", category=uvicorn.config.UvicornDeprecationWarning)
            warnings.filterwarnings("ignore", "websockets", DeprecationWarning)
            warnings.filterwarnings("ignore", "remove second argument of ws_handler", DeprecationWarning)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        (listener,) = server.servers
        try:
            yield listener.sockets[0].getsockname()[1] if config.uds is None else None
        finally:
            listener.close()
            for connection in tuple(server.server_state.connections):
                connection.shutdown()
            await asyncio.gather(*server.server_state.tasks)


@asynccontextmanager
async def hypercorn_asgi(app):
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    sockets = config.create_sockets()
    (listener,) = sockets.insecure_sockets
    listener.listen()  # hypercorn waits longer, which a test need not
    config.create_sockets = lambda: sockets
    stop = asyncio.Event()
    serving = asyncio.ensure_future(hypercorn_serve(app, config, shutdown_trigger=stop.wait, mode="asgi"))
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def granian_asgi(app):
    """granian's embedded server: its own Rust threads for the network, the application in this event loop."""
    port = free_port()
    server = GranianServer(app, port=port, interface=Interfaces.ASGINL, log_enabled=False)
    serving = asyncio.ensure_future(server.serve())
    try:
        await accepts(port, serving)
        yield port
    finally:
        server.stop()
        await serving


async def accepts(port, serving):
    """Wait until the port accepts connections."""
    async with asyncio.timeout(PATIENCE):
        while not serving.done():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.002)
            else:
                writer.close()
                await writer.wait_closed()
                return
    await serving


@asynccontextmanager
async def aiohttp_web(handler):
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
