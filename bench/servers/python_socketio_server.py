"""python-socketio on uvicorn, as its documentation sets it up. usage: python_socketio_server.py PORT [REDIS]"""

import sys

import socketio
import uvicorn

manager = socketio.AsyncRedisManager(sys.argv[2]) if len(sys.argv) > 2 else None
# By default each event has a task, and then two that one client sends can overtake each other on their way to Redis.
sio = socketio.AsyncServer(async_mode="asgi", client_manager=manager, async_handlers=manager is None)


@sio.event
async def connect(sid, environ, auth):
    secret, _, user = (auth or {}).get("token", "").partition(":")
    if user:
        await sio.enter_room(sid, user)
    return secret == "secret"


@sio.event
async def echo(sid, payload):
    return payload


@sio.event
async def fan(sid, payload):
    await sio.emit("fan", payload)


@sio.on("pass")
async def pass_on(sid, payload):
    await sio.emit("passed", payload, room=payload["to"])


if __name__ == "__main__":
    uvicorn.run(socketio.ASGIApp(sio), port=int(sys.argv[1]), log_level="warning", backlog=2048)
