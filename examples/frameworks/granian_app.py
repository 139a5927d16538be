"""A plain ASGI application on granian: no framework at all.

Run:    granian --interface asgi --working-dir examples/frameworks granian_app:app
Needs:  pip install wse granian
Shows:  the header `X-Api-Key: k-4711` opens the WebSocket; `GET /online` lists the connected users. The lifespan goes
        to WSE, which closes its connections at its end.
"""

import json

from wse import Handshake, WseConnection, WseServer
from wse.transports.asgi import Receive, Scope, Send

USERS_BY_KEY = {"k-4711": "ada", "k-0815": "grace"}

# A phone, a laptop and a second tab; by default a new device closes the old one.
server = WseServer(path="/ws", conns_per_user=3)


@server.identify
def identify(auth: Handshake) -> None:
    user = USERS_BY_KEY.get(auth.request.headers.get("X-Api-Key", ""))
    if user is None:
        auth.refuse()
    else:
        auth.accept(user, {"hello": user})


@server.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await server.asgi(scope, receive, send)
        return
    found = scope["path"] == "/online"
    body = json.dumps(sorted(map(str, server.clients)) if found else "not found").encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})
