"""The bare transports, which echo every message: RFC 6455 and 7692 apply to any message, WSE's rules do not."""

import asyncio

from wse import Limits
from wse.core.admission import Admission
from wse.transports import picows


class Echo:
    """Takes the place of a session."""

    def __init__(self, link):
        self._link = link
        self.last = None
        self.violations = []
        self.end = asyncio.get_running_loop().create_future()

    def receive(self, data):
        self.last = data
        self._link.write(data)

    def violated(self, code, problem):
        self.violations.append(code)

    def closed(self, code, reason):
        self.end.set_result((code, reason))

    def pong(self):
        """No session waits for pongs here."""

    def writable(self, writable):
        """Peers in tests read the echo."""


class EchoServer:
    """Takes the place of a server."""

    def __init__(self, limits=None, compression=None):
        self.limits = limits or Limits()
        self.admission = Admission()
        self.ready = True
        self._compression = compression
        self.echoes = []

    def select(self, offered):
        return None

    def open(self, link, request, protocol):
        self.echoes.append(Echo(link))
        return self.echoes[-1]

    async def listen(self, port=0):
        """The `asyncio.Server`."""
        return await picows.listen(
            self,
            host="127.0.0.1",
            port=port,
            reuse_port=False,
            unix=None,
            unix_mode=None,
            sock=None,
            path=None,
            ssl=None,
            handshake_timeout=5.0,
            files={},
            routes={},
            acceptors={},
            compression=self._compression,
        )


async def connect_echo(url, limits=None, compression=None):
    """Connect the client's transport; returns its session's record."""
    echoes = []

    def open_echo(link):
        echoes.append(Echo(link))
        return echoes[0]

    await picows.connect(url, "echo", {}, limits or Limits(), open_echo, compression=compression)
    return echoes[0]
