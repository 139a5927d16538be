"""Who may open a WebSocket, and where from: the policy by itself."""

import ipaddress
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wse import WseServer
from wse.core.admission import Admission
from wse.core.folding import Folding
from wse.transports.request import CompactHeaders


def headers(**values):
    """`_` in a name stands for `-`; a list is a header that occurs several times."""
    items = [(name.replace("_", "-"), value) for name, value in values.items()]
    return CompactHeaders(
        (name, text) for name, value in items for text in (value if isinstance(value, list) else [value])
    )


def admits(origin, host="app.example", origins=None):
    return Admission(origins).refusal(headers(Origin=origin, Host=host)) is None


# Origins.


@pytest.mark.parametrize("origins", [None, (), "*", ["https://app.example"]])
def test_who_sends_no_origin_is_no_browser_and_passes(origins):
    assert Admission(origins).refusal(headers(Host="app.example")) is None
    assert Admission(origins).refusal(headers()) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://app.example", "app.example"),
        ("http://app.example", "app.example"),
        ("https://app.example:443", "app.example"),
        ("https://app.example", "app.example:443"),
        ("http://app.example", "app.example:80"),
        ("http://app.example:4200", "app.example:4200"),
        ("https://app.example:4200", "app.example:4200"),
        ("HTTPS://App.Example", "APP.example"),
        ("http://127.0.0.1:4200", "127.0.0.1:4200"),
        ("http://[::1]:4200", "[::1]:4200"),
        ("http://[2001:DB8::1]", "[2001:db8::1]"),
    ],
)
def test_a_page_of_the_server_s_own_host_and_port_passes(origin, host):
    assert admits(origin, host)
    assert admits(origin, host, ["https://other.example"])


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "app.example"),
        ("https://app.example.evil.example", "app.example"),
        ("https://sub.app.example", "app.example"),
        ("https://app.example:8443", "app.example"),
        ("https://app.example", "app.example:4200"),
        ("https://app.example", "app.example:80"),
        ("http://app.example", "app.example:443"),
        ("http://localhost:4200", "127.0.0.1:4200"),
        ("null", "app.example"),
        ("null", "null"),
        ("capacitor://app.example", "app.example"),
        ("https://app.example/", "app.example"),
        ("https://app.example, https://evil.example", "app.example"),
        ("https://user@app.example", "app.example"),
        ("app.example", "app.example"),
        ("//app.example", "app.example"),
        ("https://", ""),
        ("", ""),
        ("", "app.example"),
        ("https://app.example:0", "app.example:0"),
        ("https://app.example:65536", "app.example:65536"),
        ("https://app.example", "app.example/"),
        ("https://app.example", "app.example, evil.example"),
        ("https://\u212aapp.example", "\u212aapp.example"),
    ],
)
def test_a_page_of_anywhere_else_does_not(origin, host):
    assert not admits(origin, host)


def test_without_a_host_no_page_has_the_server_s():
    assert Admission().refusal(headers(Origin="https://app.example")) is not None


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        ("https://page.example", "https://page.example"),
        ("https://page.example", "https://page.example:443"),
        ("https://page.example:443", "https://PAGE.example"),
        ("HTTPS://Page.Example", "https://page.example"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("null", "null"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("https://*.page.example", "https://a.page.example"),
        ("https://*.page.example", "https://a.b.page.example:443"),
        ("https://*.page.example:8443", "https://a.page.example:8443"),
        ("*", "https://page.example"),
        ("*", "null"),
        ("*", "whatever"),
    ],
)
def test_a_listed_origin_passes(listed, origin):
    assert admits(origin, origins=[listed])
    assert admits(origin, origins=listed)
    assert admits(origin, origins=("https://one.example", listed, "https://*.two.example"))


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        ("https://page.example", "http://page.example"),
        ("https://page.example", "https://page.example:8443"),
        ("https://page.example", "https://a.page.example"),
        ("https://page.example", "null"),
        ("https://*.page.example", "https://page.example"),
        ("https://*.page.example", "https://evilpage.example"),
        ("https://*.page.example", "http://a.page.example"),
        ("https://*.page.example", "https://a.page.example:8443"),
        ("https://*.page.example", "https://a.page.example.evil.example"),
        ("capacitor://localhost", "http://localhost"),
    ],
)
def test_an_origin_that_only_looks_like_a_listed_one_does_not(listed, origin):
    assert not admits(origin, origins=[listed])


@pytest.mark.parametrize(
    "entry",
    [
        "app.example", "https://", "https://app.example/", "https://app.example/page", "https://app.example:", "",
        "https://app.example:0", "https://app.example:65536", "https://*", "https://*.", "https://a.*.example",
        "https://*a.example", "https://*.*.example", "https://bücher.example", "*.example", "//app.example", "NULL",
        "https://user@app.example", "https://a b", "**",
    ],
)  # fmt: skip
def test_an_entry_that_is_no_origin_is_a_mistake(entry):
    with pytest.raises(ValueError, match="an origin is"):
        WseServer(origins=["https://fine.example", entry])


@given(st.text(st.characters(exclude_characters="\n")), st.text(st.characters(exclude_characters="\n")))
def test_no_origin_and_no_host_confuse_it(origin, host):
    admission = Admission("https://*.page.example", "127.0.0.1")
    request = headers(Origin=origin, Host=host, X_Forwarded_For=origin, Forwarded=host)
    admission.refusal(request)
    assert admission.address("127.0.0.1", request)


def test_a_refused_origin_is_counted_and_logged_once_in_a_minute(caplog):
    now = [0.0]
    admission = Admission(folding=Folding(lambda: now[0]))
    evil = headers(Origin="https://evil.example" * 100, Host="app.example")
    with caplog.at_level(logging.INFO, "wse"):
        refusal = admission.refusal(evil)
    assert (refusal.status, dict(refusal.headers), refusal.body) == (403, {}, "403 Forbidden\n")
    assert admission.refused_origins == 1
    (record,) = caplog.records
    assert (record.levelno, record.kind) == (logging.INFO, "origin-refused")
    assert "evil.example" in record.getMessage()
    assert len(record.getMessage()) < 300
    admission.refusal(headers(Origin="https://app.example", Host="app.example"))
    assert admission.refused_origins == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, "wse"):
        for _ in range(5):
            admission.refusal(evil)
        admission.refusal(headers(Origin="https://other.example", Host="app.example"))
        now[0] += 60
        admission.refusal(evil)
    other, evils = (record.getMessage() for record in caplog.records)
    assert "other.example" in other
    assert "(and 5 more like this)" in evils


# Readiness.


def test_while_there_is_a_reason_nobody_may_connect():
    admission = Admission()
    admission.unready |= {"one", "two"}
    for request in (headers(), headers(Origin="https://evil.example")):
        refusal = admission.refusal(request)
        assert (refusal.status, dict(refusal.headers)) == (503, {"Retry-After": "1"})
    assert admission.refused_origins == 0
    admission.unready.discard("one")
    assert admission.refusal(headers()) is not None
    admission.unready.discard("two")
    assert admission.refusal(headers()) is None


# Addresses.

PROXIES = ["10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48"]


@pytest.mark.parametrize(
    ("forwarded_for", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:DB8:0::9]:4711", "2001:db8::9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1,203.0.113.9 , 10.0.0.2,192.0.2.7", "203.0.113.9"),
        ("203.0.113.9, 2001:db8:1::5", "203.0.113.9"),
        ("203.0.113.9, [2001:db8:1::5]:80", "203.0.113.9"),
        ("203.0.113.9, ::ffff:10.0.0.2", "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        # All are proxies: the farthest one.
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        # Garbage ends the search.
        ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.9, unknown", "10.0.0.1"),
        ("203.0.113.9,", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("unix", "10.0.0.1"),
        ("1", "10.0.0.1"),
        ("10.0.0.300", "10.0.0.1"),
        ("203.0.113.9:80:80", "10.0.0.1"),
        ("[2001:db8::9", "10.0.0.1"),
        ("2001:db8::9]", "10.0.0.1"),
        ("fe80::1%<b>", "10.0.0.1"),
        ('"203.0.113.9"', "10.0.0.1"),
        ("203.0.113.9 evil", "10.0.0.1"),
    ],
)
def test_behind_a_proxy_the_client_is_the_first_address_that_is_no_proxy_s(forwarded_for, address):
    admission = Admission(trusted_proxies=PROXIES)
    assert admission.address("10.0.0.1", headers(X_Forwarded_For=forwarded_for)) == address


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ("For=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
        ('proto=https ; for="203.0.113.9:4711"', "203.0.113.9"),
        ('for="[2001:db8::9]:4711"', "2001:db8::9"),
        ('for="[2001:db8::9]"', "2001:db8::9"),
        ("for=198.51.100.1, for=203.0.113.9, for=10.0.0.2", "203.0.113.9"),
        (["for=198.51.100.1", "for=203.0.113.9"], "203.0.113.9"),
        ('for=203.0.113.9;host="a;for=198.51.100.1"', "203.0.113.9"),
        ('for=203.0.113.9, for="10.0.0.2:_port"', "203.0.113.9"),
        ("for=10.0.0.3, for=10.0.0.2", "10.0.0.3"),
        # Garbage ends the search.
        ("for=203.0.113.9, for=unknown, for=10.0.0.2", "10.0.0.2"),
        ("for=unknown", "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("for=203.0.113.9, proto=https", "10.0.0.1"),
        ("for=203.0.113.9, ", "10.0.0.1"),
        ("203.0.113.9", "10.0.0.1"),
        ("for=", "10.0.0.1"),
        ("for=203.0.113.9;", "10.0.0.1"),
        ('for="203.0.113.9', "10.0.0.1"),
        ('for=203.0.113.9;host="a,for=198.51.100.1"', "10.0.0.1"),
        # A client that opens quotes does not swallow what the proxy adds.
        ('for="198.51.100.1, for=203.0.113.9', "203.0.113.9"),
        ('for=198.51.100.1;x=", for=203.0.113.9', "203.0.113.9"),
    ],
)
def test_the_header_of_rfc_7239_says_it_as_well(forwarded, address):
    assert Admission(trusted_proxies=PROXIES).address("10.0.0.1", headers(Forwarded=forwarded)) == address


def test_x_forwarded_for_comes_before_forwarded():
    admission = Admission(trusted_proxies="10.0.0.1")
    both = headers(X_Forwarded_For="203.0.113.9", Forwarded="for=198.51.100.1")
    assert admission.address("10.0.0.1", both) == "203.0.113.9"
    assert admission.address("10.0.0.1", headers(X_Forwarded_For="unknown", Forwarded="for=198.51.100.1")) == "10.0.0.1"
    assert admission.address("10.0.0.1", headers()) == "10.0.0.1"


@pytest.mark.parametrize("peer", ["198.51.100.1", "192.0.2.8", "2001:db8::1", "", "testclient"])
def test_nobody_else_s_headers_count(peer):
    forged = headers(X_Forwarded_For="203.0.113.9", Forwarded="for=203.0.113.9")
    assert Admission(trusted_proxies=PROXIES).address(peer, forged) == peer
    assert Admission().address(peer, forged) == peer


@pytest.mark.parametrize("peer", ["10.200.0.1", "192.0.2.7", "2001:db8:1:ffff::1", "::ffff:10.0.0.1"])
def test_a_proxy_is_known_by_its_address_or_its_network(peer):
    assert Admission(trusted_proxies=PROXIES).address(peer, headers(X_Forwarded_For="203.0.113.9")) == "203.0.113.9"


def test_a_proxy_at_a_unix_socket_is_trusted_by_name():
    admission = Admission(trusted_proxies=["unix", "10.0.0.1"])
    assert admission.address("", headers(X_Forwarded_For="203.0.113.9, 10.0.0.1")) == "203.0.113.9"
    assert admission.address("", headers()) == ""
    assert admission.address("198.51.100.1", headers(X_Forwarded_For="203.0.113.9")) == "198.51.100.1"
    assert Admission(trusted_proxies="unix").address("", headers(X_Forwarded_For="203.0.113.9")) == "203.0.113.9"


@pytest.mark.parametrize("entry", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "", "*", "10.0.0.1:80", "Unix"])
def test_an_entry_that_is_no_address_is_a_mistake(entry):
    with pytest.raises(ValueError, match=r"does not appear to be|has host bits set"):
        WseServer(trusted_proxies=["127.0.0.1", entry])


TRUSTED = ipaddress.ip_network("10.0.0.0/8")
CLIENTS = st.ip_addresses().filter(lambda address: not getattr(address, "ipv4_mapped", None) and address not in TRUSTED)


@given(CLIENTS, st.lists(st.integers(0, 2**24 - 1)), st.text('0123456789abcdef.:,[]" =;%'))
def test_whatever_a_client_sends_its_address_is_what_the_proxies_saw(client, hops, forged):
    proxies = [str(TRUSTED[hop]) for hop in hops]
    chain = ", ".join([forged, str(client), *proxies])
    assert Admission(trusted_proxies=str(TRUSTED)).address("10.0.0.1", headers(X_Forwarded_For=chain)) == str(client)
