"""WSE, WebSocket Everywhere: authenticated, multi-device messaging and two-way calls over one WebSocket."""

from wse.client.backoff import Backoff
from wse.client.client import WseClient
from wse.core.cluster import ClusterSettings
from wse.core.connection import WseConnection, WseIdentity
from wse.core.handshake import Challenge, Handshake
from wse.core.heartbeat import Heartbeat
from wse.core.limits import Limits, Overflow
from wse.core.ports import Credentials, InternalTypes, Protocol
from wse.core.rooms import Room
from wse.core.rpc import ExposeErrors
from wse.core.signals import Channel, Signal
from wse.core.stats import Stats
from wse.errors import CloseReason, ErrorCode, WseError
from wse.files import js_client_path
from wse.messaging import DeviceInfo
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack
from wse.publisher import BlockingPublisher, Publisher
from wse.server import WseServer
from wse.transports.deflate import Compression
from wse.types import ClientStatus, ReadyState

__all__ = [
    "Backoff",
    "BlockingPublisher",
    "Challenge",
    "Channel",
    "ClientStatus",
    "CloseReason",
    "ClusterSettings",
    "Compression",
    "Credentials",
    "DeviceInfo",
    "ErrorCode",
    "ExposeErrors",
    "Handshake",
    "Heartbeat",
    "InternalTypes",
    "Limits",
    "Overflow",
    "Protocol",
    "Publisher",
    "ReadyState",
    "Room",
    "Signal",
    "Stats",
    "WseClient",
    "WseConnection",
    "WseError",
    "WseIdentity",
    "WseJSON",
    "WseMsgpack",
    "WseServer",
    "js_client_path",
]
