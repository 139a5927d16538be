"""python-socketio on uvicorn, as its documentation sets it up. usage: python_socketio_server.py PORT"""

import sys

import socketio
import uvicorn

sio = socketio.AsyncServer(async_mode="asgi")


@sio.event
async def connect(sid, environ, auth):
    return bool(auth) and auth.get("token") == "secret"


@sio.event
async def echo(sid, payload):
    return payload


@sio.event
async def fan(sid, payload):
    await sio.emit("fan", payload)


if __name__ == "__main__":
    uvicorn.run(socketio.ASGIApp(sio), port=int(sys.argv[1]), log_level="warning", backlog=2048)
