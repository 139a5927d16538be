"""Unix sockets: places in the file system where a server listens."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path


def check_available() -> None:
    """Check that this system has Unix sockets, and Python supports them.

    Raises:
        OSError: It has none, or Python does not.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "Python has no Unix sockets on this system")


def bind_unix(path: str, mode: int | None) -> socket.socket:
    """A socket that is bound to a path, and does not listen yet.

    A socket that an ended server has left there is replaced.

    Args:
        path: The path.
        mode: The permissions of the socket; `None` leaves them to the umask.

    Raises:
        OSError: The path is not available: another server listens there, for example.
    """
    check_available()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        try:
            sock.bind(path)
        except OSError as exc:
            raise OSError(exc.errno, f"{exc.strerror}: {path}") from exc
        if mode is not None:
            Path(path).chmod(mode)  # nobody can connect before the socket listens
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket at a path if nobody listens on it."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return  # and binding fails
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            return
