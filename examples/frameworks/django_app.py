"""Django on uvicorn, in one file: its session authenticates the WebSocket.

Run:    uvicorn --app-dir examples/frameworks django_app:application
Needs:  pip install wse django uvicorn websockets
Shows:  `GET /login?user=ada` starts a session, and the session's cookie then opens the WebSocket at `/ws`. Django knows
        no WebSockets and no lifespan, so both are WSE's, which is all that `application` says.
"""

# mypy: disable-error-code="import-untyped"
# Django has no types of its own.

import django
from django.conf import settings
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from wse import Handshake, WseConnection, WseServer
from wse.transports.asgi import Receive, Scope, Send

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="an example's secret",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()

server = WseServer(path="/ws", conns_per_user=3)


@server.identify
def identify(auth: Handshake) -> None:
    # This session is in the cookie itself. One in a database is read with `await session.aget("user")`.
    session = SessionStore(auth.request.cookies.get(settings.SESSION_COOKIE_NAME))
    user = session.get("user")
    if user is None:
        auth.refuse()
    else:
        auth.accept(user, {"hello": user})


@server.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


def login(request: HttpRequest) -> JsonResponse:
    request.session["user"] = request.GET["user"]  # a real application asks for a password, by POST
    return JsonResponse({"user": request.session["user"]})


async def online(request: HttpRequest) -> JsonResponse:
    return JsonResponse(sorted(map(str, server.clients)), safe=False)


urlpatterns = [path("login", login), path("online", online)]

django_asgi = get_asgi_application()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await django_asgi(scope, receive, send)
    else:
        await server.asgi(scope, receive, send)
