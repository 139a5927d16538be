"""SCRAM-SHA-256 in the handshake: RFC 5802 and RFC 7677, with the test vector of the latter."""

import base64
import gc
from typing import Any

import pytest
import scramp
from hypothesis import given, settings
from hypothesis import strategies as st

import wse.auth.scram as module
from wse import ErrorCode, WseError, WseServer
from wse.auth import Scram, ScramKeys, ScramServer
from wse.testing import connect

PENCIL = ScramKeys.from_password("pencil", iterations=4096)


class Users(dict[str, ScramKeys]):
    """A user store in memory."""

    async def get(self, username: str) -> ScramKeys | None:  # type: ignore[override]
        return dict.get(self, username)


def server_of(**users: ScramKeys) -> WseServer:
    server = WseServer()
    ScramServer(Users(users), iterations=4096).attach(server)
    return server


async def refused(server: WseServer, identity: Any) -> WseError:
    with pytest.raises(WseError) as caught:
        async with connect(server, identity):
            pass
    return caught.value


async def quest_for(server: WseServer, client_first: Any) -> str:
    """What a server asks a client that says `client_first`; its response is wrong."""
    quests: list[Any] = []
    error = await refused(server, Raw(client_first, {"scram": "c=biws,r=x,p=AAAA"}, quests))
    assert error.code == ErrorCode.NOT_AUTHORIZED
    return str(quests[0]["scram"])


class Raw:
    """A client whose response is whatever it is told."""

    def __init__(self, first: Any, response: Any, quests: list[Any]) -> None:
        self.first, self.response, self.quests = first, response, quests

    def start(self) -> Any:
        return self.first

    async def respond(self, quest: Any) -> Any:
        self.quests.append(quest)
        return self.response

    def finish(self, welcome: Any) -> Any:
        return welcome


async def test_who_knows_the_password_is_let_in_under_the_username() -> None:
    server = server_of(ada=PENCIL)
    async with connect(server, Scram("ada", "pencil")) as client:
        assert client.status == "READY"
        assert list(server.clients) == ["ada"]


@pytest.mark.parametrize("identity", [Scram("ada", "pen"), Scram("grace", "pencil")])
async def test_a_wrong_password_and_an_unknown_user_are_refused_alike(identity: Scram) -> None:
    error = await refused(server_of(ada=PENCIL), identity)
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert error.details == {"code": 1000, "reason": "wse.not-authorized"}


MALFORMED_HELLOS = [
    None,
    "ada",
    {},
    {"scram": None},
    {"scram": ""},
    {"scram": 5},
    {"scram": ["n,,n=ada,r=abc"]},
    {"scram": "n,,n=ada"},
    {"scram": "n,,n=,r=x"},
    {"scram": "y,,n=a,r=\x00"},
    {"scram": "p=tls-unique,,n=ada,r=abc"},
]


@pytest.mark.parametrize("identity", MALFORMED_HELLOS)
async def test_a_malformed_hello_is_refused_without_a_quest(identity: Any) -> None:
    errors: list[WseError] = []
    server = server_of(ada=PENCIL)
    server.when.error(lambda err, conn: errors.append(err))
    quests: list[Any] = []
    assert (await refused(server, Raw(identity, None, quests))).code == ErrorCode.NOT_AUTHORIZED
    assert quests == []
    assert errors == []


@settings(max_examples=50)
@given(response=st.none() | st.text() | st.dictionaries(st.just("scram"), st.text() | st.integers() | st.none()))
async def test_a_malformed_response_is_refused_and_nothing_raises(response: Any) -> None:
    errors: list[WseError] = []
    server = server_of(ada=PENCIL)
    server.when.error(lambda err, conn: errors.append(err))
    identity = Raw({"scram": "n,,n=ada,r=rOprNGfwEbeRWgbNEkqO"}, response, [])
    assert (await refused(server, identity)).code == ErrorCode.NOT_AUTHORIZED
    assert errors == []


async def test_an_unknown_user_is_asked_exactly_as_a_known_one_and_always_the_same() -> None:
    server = server_of(ada=PENCIL)

    async def ask(name: str) -> dict[str, str]:
        quest = await quest_for(server, {"scram": f"n,,n={name},r=abc"})
        return dict(part.split("=", 1) for part in quest.split(","))  # type: ignore[misc]

    known, unknown, again, other = [await ask(name) for name in ("ada", "grace", "grace", "linus")]
    assert known.keys() == unknown.keys()
    assert known["i"] == unknown["i"]
    assert len(known["s"]) == len(unknown["s"])
    assert len(known["r"]) == len(unknown["r"])
    assert unknown["s"] == again["s"] != other["s"]
    assert unknown["r"] != again["r"]


async def test_two_servers_with_one_secret_ask_an_unknown_user_the_same() -> None:
    salts = []
    for _ in range(2):
        server = WseServer()
        ScramServer(Users(), secret=b"0123456789abcdef").attach(server)
        salts.append((await quest_for(server, {"scram": "n,,n=ada,r=abc"})).split(",")[1])
    assert salts[0] == salts[1]


async def test_the_application_decides_on_the_id_and_the_welcome_in_the_long_form() -> None:
    server = WseServer()
    scram = ScramServer(Users(ada=PENCIL))
    server.use_challenge(scram.challenge)

    @server.identify
    async def identify(auth: Any) -> None:
        username = scram.verify(auth)
        scram.accept(auth, 42, {"hello": username})

    welcomes: list[Any] = []
    async with connect(server, Scram("ada", "pencil")) as client:
        client.when.ready(welcomes.append)
        assert welcomes == [{"hello": "ada"}]
        assert list(server.clients) == [42]


async def test_accepting_without_verifying_is_an_error_of_the_application() -> None:
    server = WseServer()
    scram = ScramServer(Users(ada=PENCIL))
    server.use_challenge(scram.challenge)
    server.identify(lambda auth: scram.accept(auth, "ada"))
    errors: list[WseError] = []
    server.when.error(lambda err, conn: errors.append(err))
    assert (await refused(server, Scram("ada", "wrong"))).code == ErrorCode.NOT_AUTHORIZED
    assert isinstance(errors[0].__cause__, RuntimeError)


async def test_a_server_that_does_not_ask_is_not_believed() -> None:
    server = WseServer(lambda auth: auth.accept("ada", {"scram": "v=AAAA", "welcome": "hello"}))
    error = await refused(server, Scram("ada", "pencil"))
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert "proved" in error.message


@pytest.mark.parametrize(
    "welcome", [None, {}, {"scram": None}, {"scram": "v=AAAA"}, {"scram": "e=other-error"}, "v=AAAA"]
)
async def test_a_server_that_lacks_the_keys_is_not_believed(welcome: Any) -> None:
    server = WseServer()
    server.use_challenge(ScramServer(Users(ada=PENCIL)).challenge)
    server.identify(lambda auth: auth.accept("ada", welcome))
    error = await refused(server, Scram("ada", "pencil"))
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert "proved" in error.message


@pytest.mark.parametrize("quest", [None, "r=x", {"scram": "nonsense"}, {"scram": "r=other,s=QSXCR+Q6sek8bf92,i=4096"}])
async def test_a_quest_that_is_not_scram_fails_the_connect(quest: Any) -> None:
    server = WseServer(lambda auth: auth.accept("ada"))
    server.use_challenge(lambda auth: auth.quest(quest))
    error = await refused(server, Scram("ada", "pencil"))
    assert error.code == ErrorCode.INVALID_CRA_HANDLER


async def test_one_identity_serves_connection_after_connection() -> None:
    server = server_of(ada=PENCIL)
    identity = Scram("ada", "pencil")
    for _ in range(2):
        async with connect(server, identity) as client:
            assert client.status == "READY"


async def test_the_server_forgets_an_exchange_with_its_connection() -> None:
    server = WseServer()
    scram = ScramServer(Users(ada=PENCIL))
    scram.attach(server)
    async with connect(server, Scram("ada", "pencil")):
        pass
    gc.collect()
    assert len(scram._exchanges) == 0


def test_the_messages_are_those_of_rfc_7677(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7677, section 3."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    info = scramp.ScramMechanism("SCRAM-SHA-256").make_auth_info("pencil", 4096, salt)
    keys = ScramKeys(*info)
    client = scramp.ScramClient(["SCRAM-SHA-256"], "user", "pencil", c_nonce="rOprNGfwEbeRWgbNEkqO")
    first = client.get_client_first()
    assert first == "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    real = scramp.ScramMechanism.make_server
    nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    monkeypatch.setattr(scramp.ScramMechanism, "make_server", lambda self, fn: real(self, fn, s_nonce=nonce))
    exchange = module._Exchange(first, "user", keys, known=True)
    assert exchange.server_first == f"r=rOprNGfwEbeRWgbNEkqO{nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    client.set_server_first(exchange.server_first)
    final = client.get_client_final()
    assert final == f"c=biws,r=rOprNGfwEbeRWgbNEkqO{nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert exchange.verify({"scram": final}) == "user"
    assert exchange.server_final == "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_keys_survive_being_stored_as_strings() -> None:
    assert ScramKeys.from_dict(PENCIL.to_dict()) == PENCIL


@pytest.mark.parametrize("broken", [{}, {"salt": "!", "stored_key": "", "server_key": "", "iterations": 1}])
def test_keys_that_were_stored_wrongly_are_rejected(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        ScramKeys.from_dict(broken)


@pytest.mark.parametrize(("password", "iterations"), [("", 4096), ("\x07", 4096), ("pencil", 4095)])
def test_keys_are_made_only_of_what_scram_allows(password: str, iterations: int) -> None:
    with pytest.raises(ValueError):
        ScramKeys.from_password(password, iterations=iterations)


def test_a_name_that_scram_forbids_is_rejected_at_once() -> None:
    with pytest.raises(ValueError):
        Scram("\x07", "pencil")


def test_a_short_secret_is_rejected_at_once() -> None:
    with pytest.raises(ValueError):
        ScramServer(Users(), secret=b"short")


def test_nothing_of_it_shows_secrets() -> None:
    shown = f"{PENCIL!r} {Scram('ada', 'pencil')!r}"
    assert "pencil" not in shown
    assert repr(PENCIL.salt) not in shown


async def test_nobody_is_verified_before_the_quest() -> None:
    verified: list[str | None] = []
    server = WseServer()
    scram = ScramServer(Users(ada=PENCIL))

    @server.identify
    def identify(auth: Any) -> None:
        verified.append(scram.verify(auth))
        auth.refuse()

    assert (await refused(server, Scram("ada", "pencil"))).code == ErrorCode.NOT_AUTHORIZED
    assert verified == [None]


def test_an_unknown_user_is_not_verified_whatever_the_proof() -> None:
    client = scramp.ScramClient(["SCRAM-SHA-256"], "ada", "pencil")
    exchange = module._Exchange(client.get_client_first(), "ada", PENCIL, known=False)
    client.set_server_first(exchange.server_first)
    assert exchange.verify({"scram": client.get_client_final()}) is None
    assert exchange.server_final is None
