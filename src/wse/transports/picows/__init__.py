"""WebSockets on picows, for server and client: the default transport.

picows parses and builds frames. The rest is done here: messages (reassembly, UTF-8, the rules of RFC 6455 that span
several frames), the closing handshake, and few writes. One write to a socket costs about the same whatever its size. So
the answers to all frames of one read leave together, and so do all messages of one turn of the event loop.
"""

from wse.transports.picows.client import connect
from wse.transports.picows.server import Listener, listen
from wse.transports.picows.upgrade import Upgrader

__all__ = ["Listener", "Upgrader", "connect", "listen"]
