"""fastapi-websocket-rpc on uvicorn. usage: fastapi_rpc_server.py PORT

It has no authentication and no broadcast of its own: a connection is accepted as it comes, and the broadcast is the
loop over its connection manager that an application has to write, with the message serialised once.
"""

import json
import logging
import sys

import uvicorn
from fastapi import FastAPI
from fastapi_websocket_rpc import RpcMethodsBase, WebsocketRPCEndpoint
from fastapi_websocket_rpc.rpc_channel import NoResponse
from fastapi_websocket_rpc.schemas import RpcMessage, RpcRequest

logging.disable(logging.ERROR)  # it logs every connection


class Methods(RpcMethodsBase):
    async def echo(self, p=None) -> dict:
        return p

    async def fan(self, p=None):
        request = RpcRequest(method="fan", arguments={"p": p})
        text = json.dumps(RpcMessage(request=request).model_dump(), separators=(",", ":"))
        for websocket in tuple(endpoint.manager.active_connections):
            await websocket.send_text(text)
        return NoResponse


endpoint = WebsocketRPCEndpoint(Methods())
app = FastAPI()
endpoint.register_route(app, "/ws")

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", backlog=2048)
