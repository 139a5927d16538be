"""Django on uvicorn, in one file: its session authenticates the WebSocket.

Run:    uvicorn --app-dir examples/frameworks --ws wse.uvicorn:WebSocketProtocol django_app:application
Needs:  pip install "wse[uvicorn]" django
Shows:  `GET /login?user=ada` starts a session, and the session's cookie then opens the WebSocket at `/ws`.
        `GET /password?new=secret` changes the user's password, after which neither Django nor WSE accepts the user's
        other sessions. Django handles neither WebSockets nor the lifespan, so `application` passes both to WSE.
"""

# mypy: disable-error-code="import-untyped"
# Django has no types of its own.

import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpRequest, JsonResponse
from django.urls import path

from wse import Handshake, WseConnection, WseServer
from wse.transports.asgi import Receive, Scope, Send

settings.configure(  # a project has its settings module instead
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(tempfile.mkdtemp(), "example.sqlite3")},
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="an example's secret",
)
django.setup()

from django.contrib.auth import aget_user, login, update_session_auth_hash  # noqa: E402 - Django is set up by now
from django.contrib.auth.models import User  # noqa: E402 - as above

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore

# A phone, a laptop and a second tab; by default a new device closes the old one.
server = WseServer(path="/ws", conns_per_user=3)


@server.identify
async def identify(auth: Handshake) -> None:
    request = HttpRequest()
    request.session = SessionStore(auth.request.cookies.get(settings.SESSION_COOKIE_NAME))
    user = await aget_user(request)  # checks the session as Django does for its views
    if user.is_authenticated:
        auth.accept(user.get_username(), {"hello": user.get_username()})
    else:
        auth.refuse()


@server.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


def log_in(request: HttpRequest) -> JsonResponse:
    # A real application asks for a password, by POST.
    user, _ = User.objects.get_or_create(username=request.GET["user"])
    login(request, user)
    return JsonResponse({"user": user.get_username()})


def change_password(request: HttpRequest) -> JsonResponse:
    request.user.set_password(request.GET["new"])
    request.user.save()
    update_session_auth_hash(request, request.user)  # this session stays
    return JsonResponse({"user": request.user.get_username()})


async def online(request: HttpRequest) -> JsonResponse:
    return JsonResponse(sorted(map(str, server.clients)), safe=False)


urlpatterns = [path("login", log_in), path("password", change_password), path("online", online)]

# `manage.py migrate`, in a thread: uvicorn imports this module in its event loop, where Django refuses to block.
with ThreadPoolExecutor(1) as executor:
    executor.submit(call_command, "migrate", verbosity=0).result()

django_asgi = get_asgi_application()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await django_asgi(scope, receive, send)
    else:
        await server.asgi(scope, receive, send)
