"""What the `tls` extension of ASGI tells about the certificate of a client."""

import pytest

from support.net import JSON, hi
from wse import WseServer
from wse.transports.certificate import extension_certificate

CHAIN = ["-----BEGIN CERTIFICATE-----\n..."]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("CN=ada", ((("commonName", "ada"),),)),
        (
            "CN=ada,OU=Engines,O=Analytical",  # the order of RFC 4514 is that of the certificate, reversed
            ((("organizationName", "Analytical"),), (("organizationalUnitName", "Engines"),), (("commonName", "ada"),)),
        ),
        ("cn=ada+UID=7,DC=example", ((("domainComponent", "example"),), (("commonName", "ada"), ("userId", "7")))),
        ("CN=Lovelace\\, Ada\\2B\\C3\\BC,1.2.3=x", ((("1.2.3", "x"),), (("commonName", "Lovelace, Ada+ü"),))),
        ("CN=a=b", ((("commonName", "a=b"),),)),
    ],
)
def test_the_subject_has_the_form_of_ssl(name, subject):
    tls = {"client_cert_name": name, "client_cert_chain": CHAIN, "client_cert_error": None}
    assert extension_certificate(tls) == {"subject": subject, "chain": CHAIN}


@pytest.mark.parametrize(
    "changed", [{"client_cert_name": None}, {"client_cert_chain": []}, {"client_cert_error": "expired"}]
)
def test_without_a_certificate_that_was_checked_there_is_none(changed):
    assert extension_certificate({"client_cert_name": "CN=ada", "client_cert_chain": CHAIN, **changed}) is None


async def test_an_asgi_server_with_the_extension_hands_the_certificate_over():
    seen = []
    server = WseServer(lambda auth: seen.append(auth.request.certificate))
    tls = {"client_cert_name": "CN=ada", "client_cert_chain": CHAIN, "client_cert_error": None}
    scope = {"type": "websocket", "path": "/", "headers": [], "subprotocols": [JSON], "extensions": {"tls": tls}}
    events = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": hi()},
        {"type": "websocket.disconnect", "code": 1000},
    ]

    async def receive():
        return events.pop(0)

    async def send(event):
        pass

    await server.asgi(scope, receive, send)
    await server.close()
    assert seen == [{"subject": ((("commonName", "ada"),),), "chain": CHAIN}]
