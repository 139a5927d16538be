"""A server on the socket that systemd hands over, as wse.socket says; without systemd, on a port of its own."""

import os
import socket

from wse import Handshake, WseServer

FIRST = 3  # the descriptor of the first socket, see sd_listen_fds(3)


def accept(auth: Handshake) -> None:
    auth.accept(auth.identity)  # accepts everybody: check a token or a password here


if os.environ.get("LISTEN_PID") == str(os.getpid()):
    server = WseServer(accept, sock=socket.socket(fileno=FIRST), path="/ws")
else:
    server = WseServer(accept, port=4200, path="/ws")

if __name__ == "__main__":
    server.run()
