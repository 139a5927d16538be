"""pydantic-socketio on uvicorn, as its documentation sets it up. usage: pydantic_socketio_server.py PORT"""

import sys
from typing import Annotated

import socketio
import uvicorn
from pydantic import BaseModel, Field
from pydantic_socketio import AsyncServer

sio = AsyncServer(async_mode="asgi")


class Model(BaseModel):
    a: Annotated[int, Field(ge=0)]
    b: int
    n: int


@sio.on("connect")
async def connect(sid, environ, auth):
    return auth["token"] == "secret"


@sio.on("echo")
async def echo(sid: str, payload: Model) -> Model:
    return payload


if __name__ == "__main__":
    uvicorn.run(socketio.ASGIApp(sio), port=int(sys.argv[1]), log_level="warning", backlog=2048)
