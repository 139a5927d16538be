"""A page that shows an answer word by word while it is made, and can stop it. FastAPI on uvicorn.

Run:    uvicorn --app-dir examples/tokens tokens_app:app
Then:   http://127.0.0.1:8000/ in a browser
Needs:  pip install wse fastapi uvicorn websockets
Shows:  a procedure that yields, and a page that reads it with `client.stream`. The stop button ends the generator here,
        and the page shows what it says then. An answer survives a lost connection. `GET /answers` counts the answers.

There is no language model in it: `fake_model` repeats the question. Put the streaming call of your model in its place.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.routing import WebSocketRoute

from wse import Handshake, WseConnection, WseServer, js_client_path

server = WseServer(conns_per_user=3)
answers = Counter({"running": 0, "complete": 0, "stopped": 0})


@server.identify
def identify(auth: Handshake) -> None:
    # This accepts every page under a name of its own choice. Check your login here, as fastapi_app.py does.
    auth.accept(str(auth.identity))


async def fake_model(prompt: str) -> AsyncIterator[str]:
    for word in f"You asked: {prompt}".split():
        await asyncio.sleep(0.03)
        yield word + " "


@server.register("answer")
async def answer(conn: WseConnection, prompt: str) -> AsyncIterator[str]:
    answers["running"] += 1
    words, end = 0, "stopped"
    try:
        async for token in fake_model(prompt):
            yield token
            words += 1
        end = "complete"
    finally:
        # Also when the page has stopped the answer, or is gone: nothing goes on, and a real model would be told here.
        answers["running"] -= 1
        answers[end] += 1
        conn.send("answered", {"end": end, "words": words})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with server:
        yield


app = FastAPI(lifespan=lifespan)
app.router.routes.append(WebSocketRoute("/ws", server.asgi))


@app.get("/answers")
async def count() -> dict[str, int]:
    return dict(answers)


app.mount("/wse", StaticFiles(directory=js_client_path().parent))
app.mount("/", StaticFiles(directory=Path(__file__).with_name("web"), html=True))
