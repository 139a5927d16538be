"""What goes into the HTTP request of a client, and what its answer may be (RFC 6455, 4.1)."""

import asyncio

import pytest

from wse import WseClient, WseJSON
from wse.transports.picows.handshake import Address, Answer, HandshakeError, accept_value, feed

CONTROLS = [chr(n) for n in (*range(32), 127)]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455, 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("char", [*CONTROLS, " "])
@pytest.mark.parametrize(
    "at", ["ws://localhost/a{}b", "ws://localhost/?a={}b", "ws://local{}host/", "{}ws://localhost"]
)
def test_a_url_with_a_space_or_a_control_character_is_rejected(at, char):
    with pytest.raises(ValueError, match="WebSocket URL"):
        WseClient(at.format(char))


@pytest.mark.parametrize(
    "url",
    [
        "ws+unix:",
        "ws+unix:///",
        "ws+unix:///:/ws",
        "ws+unix:///run/:/ws",
        "ws+unix:///a.sock:ws",
        "ws+unix://host/a.sock",
        "ws+unix:a.sock:/ws",
        "ws+unix:///a.sock#x",
    ],
)
def test_the_url_of_a_unix_socket_needs_an_absolute_path(url):
    with pytest.raises(ValueError, match="Unix socket"):
        WseClient(url)


@pytest.mark.parametrize(
    ("url", "unix", "resource", "secure"),
    [
        ("ws+unix:///run/a.sock", "/run/a.sock", "/", False),
        ("ws+unix:/run/a.sock:/ws?x=1", "/run/a.sock", "/ws?x=1", False),
        ("wss+unix:///run/a%3Ab.sock:/a:b", "/run/a:b.sock", "/a:b", True),
    ],
)
def test_the_url_of_a_unix_socket_has_two_paths(url, unix, resource, secure):
    address = Address(url)
    assert (address.unix, address.resource, address.secure) == (unix, resource, secure)
    assert (address.host, address.authority) == ("localhost", "localhost")


@pytest.mark.parametrize("char", CONTROLS)
def test_a_header_with_a_control_character_is_rejected_and_its_value_is_not_shown(char):
    if char != "\t":  # which HTTP allows
        with pytest.raises(ValueError, match="X-Name has a control character") as caught:
            WseClient("ws://localhost", headers={"X-Name": f"secret{char}X-Admin: yes"})
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="name of a header"):
        WseClient("ws://localhost", headers={f"X{char}Name": "value"})


@pytest.mark.parametrize("name", ["", "X Name", "X:Name", "Näme"])
def test_an_invalid_header_name_is_rejected(name):
    with pytest.raises(ValueError, match="name of a header"):
        WseClient("ws://localhost", headers={name: "value"})


@pytest.mark.parametrize(
    "name",
    ["Connection", "UPGRADE", "sec-websocket-protocol", "Sec-WebSocket-Key", "Content-Length", "Transfer-Encoding"],
)
def test_a_header_that_belongs_to_the_handshake_is_rejected(name):
    with pytest.raises(ValueError, match=f"the handshake itself decides about the header {name}"):
        WseClient("ws://localhost", headers={name: "value"})


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a\r\nb", "é"])
def test_a_protocol_whose_name_cannot_be_a_subprotocol_is_rejected(name):
    class Named(WseJSON):
        pass

    Named.name = name
    with pytest.raises(ValueError, match="subprotocol"):
        WseClient("ws://localhost", protocol=Named())


@pytest.mark.parametrize("port", ["99999", "x", "-1", "0"])
def test_a_url_with_a_wrong_port_is_rejected(port):
    with pytest.raises(ValueError, match="port"):
        WseClient(f"ws://localhost:{port}/")


@pytest.mark.parametrize("host", ["a..b", "bücher..example", "x" * 64, "ü" * 64])
def test_a_url_with_a_host_that_has_no_name_in_dns_is_rejected(host):
    with pytest.raises(ValueError, match="wrong host"):
        WseClient(f"ws://{host}/")


@pytest.mark.parametrize("url", [r"ws://localhost\@example.org/", r"ws://localhost/a\b"])
def test_a_url_with_a_backslash_is_rejected(url):  # browsers read it as a slash
    with pytest.raises(ValueError, match="backslashes"):
        WseClient(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "resource"),
    [
        ("ws://localhost", "localhost", 80, "localhost", "/"),
        ("wss://Example.org?q=1", "example.org", 443, "example.org", "/?q=1"),
        ("ws://[::1]:4200/a/b?q=%20", "::1", 4200, "[::1]:4200", "/a/b?q=%20"),
        ("wss://[::1]/", "::1", 443, "[::1]", "/"),
        ("ws://ann:secret@host:81/x", "host", 81, "host:81", "/x"),  # no user name and password in Host
        ("ws://bücher.example/ü/%41?ü", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/%C3%BC/%41?%C3%BC"),
    ],
)
def test_a_url_s_parts(url, host, port, authority, resource):
    address = Address(url)
    assert (address.host, address.port, address.authority, address.resource) == (host, port, authority, resource)
    assert address.secure == url.startswith("wss")


def head(*lines, status="101 Switching Protocols", accept=ACCEPT, upgrade="websocket", connection="Upgrade"):
    all_lines = [f"HTTP/1.1 {status}", f"Upgrade: {upgrade}", f"Connection: {connection}"]
    return "\r\n".join([*all_lines, f"Sec-WebSocket-Accept: {accept}", *lines]).encode()


def test_the_accept_value_is_that_of_the_rfc():
    assert accept_value(KEY) == ACCEPT


@pytest.mark.parametrize(
    "answer",
    [
        head(),
        head("Sec-WebSocket-Protocol: chat"),
        head(connection="Upgrade, Keep-Alive"),
        head(connection="keep-alive ,upgrade"),
        head(connection="keep-alive\r\nCONNECTION: UPGRADE"),
        head(upgrade="WebSocket"),
        head(status="101"),
        head(status="101 "),
        head("X-Empty:", "x-latin: \xe9", "X-Tab:\ta\tb\t").decode().encode("latin-1"),
    ],
)
def test_answers_that_open_the_websocket(answer):
    Answer(answer).check(KEY, "chat")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (head(status="200 OK"), "HTTP status 200$"),
        (head(status="302 Found"), "HTTP status 302; redirects are not followed"),
        (head(upgrade="h2c"), "Upgrade"),
        (head(upgrade="websocket, h2c"), "Upgrade"),
        (head(connection="close"), "Connection"),
        (head(connection="upgraded"), "Connection"),
        (head(accept="nonsense"), "Sec-WebSocket-Accept"),
        (head(f"Sec-WebSocket-Accept: {ACCEPT}"), "Sec-WebSocket-Accept"),
        (head("Sec-WebSocket-Protocol: mqtt"), "Sec-WebSocket-Protocol"),
        (head("Sec-WebSocket-Protocol: CHAT"), "Sec-WebSocket-Protocol"),
        (head("Sec-WebSocket-Protocol: chat, mqtt"), "Sec-WebSocket-Protocol"),
        (head("Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"), "Sec-WebSocket-Protocol"),
        (head("Sec-WebSocket-Protocol:"), "Sec-WebSocket-Protocol"),
        (head("no colon"), "malformed"),
        (head("X-Folded: a\r\n b"), "malformed"),
        (head("X Name: a"), "malformed"),
        (head("X-Name : a"), "malformed"),
        (head("X-Feed: a\nb"), "malformed"),
        (head("X-Null: \0"), "malformed"),
        (b"HTTP/1.0 101 OK", "HTTP/1.1"),
        (b"HTTP/2 101 OK", "HTTP/1.1"),
        (b"HTTP/1.1 1010 OK", "HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.6", "HTTP/1.1"),
        (b"", "HTTP/1.1"),
    ],
)
def test_answers_that_do_not(answer, problem):
    with pytest.raises(HandshakeError, match=problem):
        Answer(answer).check(KEY, "chat")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (head(status="503 Service Unavailable"), 503),
        (b"HTTP/1.0 503 Service Unavailable", 503),  # as HAProxy says it
        (b"HTTP/1.0 101 Switching Protocols", 101),
    ],
)
def test_an_answer_says_its_status(answer, status):
    with pytest.raises(HandshakeError) as caught:
        Answer(answer).check(KEY, "chat")
    assert caught.value.status == status


def test_bytes_are_fed_in_pieces_as_large_as_the_buffer():
    class Small(asyncio.BufferedProtocol):
        def __init__(self):
            self.got = b""
            self.buffer = bytearray(3)

        def get_buffer(self, sizehint):
            return memoryview(self.buffer)

        def buffer_updated(self, nbytes):
            self.got += self.buffer[:nbytes]

    protocol = Small()
    feed(protocol, b"0123456789")
    assert protocol.got == b"0123456789"
