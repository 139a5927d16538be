"""python-socketio on uvicorn, as its documentation sets it up. usage: python_socketio_server.py PORT [REDIS]"""

import asyncio
import collections
import itertools
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


class Items:
    """What one client gets. Each event has a task, and the items of one must not overtake those of another."""

    def __init__(self):
        self.numbers = itertools.count()
        self.lock = asyncio.Lock()


items = collections.defaultdict(Items)


@sio.event
async def more(sid, number):
    async with items[sid].lock:
        for n in itertools.islice(items[sid].numbers, number):
            await sio.emit("item", {"a": 5, "b": 3, "n": n}, to=sid)


@sio.event
def disconnect(sid, reason):
    items.pop(sid, None)


@sio.on("pass")
async def pass_on(sid, payload):
    await sio.emit("passed", payload, room=payload["to"])


if __name__ == "__main__":
    uvicorn.run(socketio.ASGIApp(sio), port=int(sys.argv[1]), log_level="warning", backlog=2048)
