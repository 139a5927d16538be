"""WSE, WebSocket Everywhere: authenticated, multi-device messaging and two-way calls over one WebSocket."""

from wse.backoff import Backoff
from wse.client.blocking import BlockingClient
from wse.client.client import WseClient
from wse.client.inbox import Kept
from wse.client.resumption import Loss
from wse.core.cluster.settings import ClusterSettings
from wse.core.heartbeat import Heartbeat
from wse.core.hub.connection import WseConnection, WseIdentity
from wse.core.hub.handshake import Challenge, Handshake
from wse.core.hub.kept.histories import KeptMessage
from wse.core.hub.network import DeviceInfo
from wse.core.hub.rooms import Room
from wse.core.inbox import Inbox
from wse.core.limits import Limits, Overflow
from wse.core.ports.credentials import Credentials
from wse.core.ports.protocol import ExtensionTypes, InternalTypes, Protocol
from wse.core.resume import Resume
from wse.core.session.asking import Stream
from wse.core.session.current_call import CurrentCall, current_call, shield_deadline
from wse.core.session.rpc import ExposeErrors
from wse.core.session.signals import Signal
from wse.core.stats import Stats
from wse.errors import CloseReason, ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack
from wse.publisher import BlockingPublisher, Publisher
from wse.server.files import js_client_path
from wse.server.server import WseServer
from wse.transports.deflate import Compression
from wse.typed.dependencies import Depends
from wse.typed.events import ClientProcedure, Event
from wse.typed.handlers import Channel
from wse.typed.middleware import Call
from wse.typed.operations import Operation
from wse.typed.router import Router
from wse.types import ClientStatus, ReadyState

__all__ = [
    "Backoff",
    "BlockingClient",
    "BlockingPublisher",
    "Call",
    "Challenge",
    "Channel",
    "ClientProcedure",
    "ClientStatus",
    "CloseReason",
    "ClusterSettings",
    "Compression",
    "Credentials",
    "CurrentCall",
    "Depends",
    "DeviceInfo",
    "ErrorCode",
    "Event",
    "ExposeErrors",
    "ExtensionTypes",
    "Handshake",
    "Heartbeat",
    "Inbox",
    "InternalTypes",
    "Kept",
    "KeptMessage",
    "Limits",
    "Loss",
    "Operation",
    "Overflow",
    "Protocol",
    "Publisher",
    "ReadyState",
    "Resume",
    "Room",
    "Router",
    "Signal",
    "Stats",
    "Stream",
    "WseClient",
    "WseConnection",
    "WseError",
    "WseIdentity",
    "WseJSON",
    "WseMsgpack",
    "WseServer",
    "current_call",
    "js_client_path",
    "shield_deadline",
]
