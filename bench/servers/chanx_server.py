"""chanx on Starlette and uvicorn, as its documentation sets it up. usage: chanx_server.py PORT"""

import sys
from typing import Annotated, Literal

import uvicorn
from chanx.core.decorators import channel, ws_handler
from chanx.fast_channels.websocket import AsyncJsonWebsocketConsumer
from chanx.messages.base import BaseMessage
from fast_channels.layers import InMemoryChannelLayer, register_channel_layer
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute


class Model(BaseModel):
    a: Annotated[int, Field(ge=0)]
    b: int
    n: int


class Echo(BaseMessage):
    action: Literal["echo"] = "echo"
    payload: Model


class Echoed(BaseMessage):
    action: Literal["echoed"] = "echoed"
    payload: Model


@channel(name="echo")
class Consumer(AsyncJsonWebsocketConsumer):
    channel_layer_alias = "default"

    @ws_handler(output_type=Echoed)
    async def handle_echo(self, message: Echo) -> Echoed:
        return Echoed(payload=message.payload)


register_channel_layer("default", InMemoryChannelLayer())
app = Starlette(routes=[WebSocketRoute("/ws", Consumer.as_asgi())])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", backlog=2048)
