"""WebSockets on picows, for server and client: the default transport.

picows parses and builds frames. Left to us are messages (reassembly, UTF-8, what RFC 6455 forbids beyond a single
frame), the closing handshake, and writing little: one write to a socket costs about the same whatever its size, so
the answers to all frames of one read leave together, and so does what is sent in one turn of the event loop.
"""

from wse.transports.picows.client import connect
from wse.transports.picows.server import Listener, listen

__all__ = ["Listener", "connect", "listen"]
