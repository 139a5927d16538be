"""The bare transports, which send every message back: RFC 6455 and 7692 apply to any message, WSE's rules do not."""

import asyncio

from wse import Limits
from wse.core.admission import Admission
from wse.transports import picows


class Echo:
    """What stands where a session would."""

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
        """Nobody pings here."""

    def writable(self, writable):
        """Peers in tests read what they get back."""


class EchoServer:
    """What stands where a server would."""

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
            path=None,
            ssl=None,
            handshake_timeout=5.0,
            files={},
            compression=self._compression,
        )


async def connect_echo(url, limits=None, compression=None):
    """Connect our client's transport; what it told its session."""
    echoes = []

    def open_echo(link):
        echoes.append(Echo(link))
        return echoes[0]

    await picows.connect(url, "echo", {}, limits or Limits(), open_echo, compression=compression)
    return echoes[0]
