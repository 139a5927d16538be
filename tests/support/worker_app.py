"""A Starlette application for several processes of uvicorn: routes of each send to the users of all of them."""

import os
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from wse import WseServer

server = WseServer(lambda auth: auth.accept(auth.identity), broker=os.environ["BROKER"])


@asynccontextmanager
async def lifespan(app):
    async with server:
        yield


async def send(request):
    server.send("ann", "news", request.query_params["text"])
    return PlainTextResponse("sent")


app = Starlette(routes=[Route("/send", send), WebSocketRoute("/ws", server.asgi)], lifespan=lifespan)
