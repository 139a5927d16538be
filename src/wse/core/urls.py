"""URLs that are shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def without_secrets(url: str) -> str:
    """A URL for logs and errors: scheme, hosts and path, without the user, the password and the parameters."""
    parts = urlsplit(url)
    hosts = ",".join(host.rpartition("@")[2] for host in parts.netloc.split(","))
    return urlunsplit((parts.scheme, hosts, parts.path, "", ""))
