"""The contract of a server: the AsyncAPI document, what the commands print, and the clients that they write."""

from __future__ import annotations

import base64
import enum
import hashlib
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from support import shop
from support.programs import ROOT, unmeasured
from wse import ClientProcedure, Event, Handshake, WseClient, WseServer
from wse.cli.commands import wse as command
from wse.client.options import ClientOptions
from wse.contract.document import document_of
from wse.contract.page import page_of
from wse.contract.python import python_of
from wse.contract.reading import ContractError, read
from wse.contract.typescript import typescript_of

T = TypeVar("T")

SUPPORT = str(ROOT / "tests" / "support")


def make_server() -> WseServer:
    return WseServer(lambda auth: auth.accept("ada"), port=4200)


def contract_of(server):
    own = [each for each in server.operations if each.receiver == "server"]  # others' events are in this process, too
    return document_of(own, title="app", version="1")


def message(document, channel, role):
    return document["channels"][channel]["messages"][role]["payload"]


def run(*args: str, input: str | None = None, code: int = 0) -> Any:
    result = CliRunner().invoke(command, args, input=input)
    assert result.exit_code == code, result.output
    return result


class Wide(BaseModel):
    when: tuple[int, str]


class Holder(msgspec.Struct):
    wide: Wide
    many: list[Wide] = []


class Pair(NamedTuple):
    left: int
    right: str


class A(msgspec.Struct, tag=True):
    x: int


class B(msgspec.Struct, tag=True):
    y: A | None = None
    z: Annotated[int, msgspec.Meta(gt=0)] = 1


class Answer(msgspec.Struct):
    text: str = ""
    maybe: int | msgspec.UnsetType = msgspec.UNSET


class Sparse(msgspec.Struct, omit_defaults=True):
    text: str = ""


def test_types_of_msgspec_and_pydantic_inside_of_each_other_have_schemas_of_draft_7() -> None:
    server = make_server()
    server.register("hold", lambda conn, payload: payload)

    @server.register
    def put(conn: Any, payload: Holder) -> Pair: ...

    @server.register
    def either(conn: Any, payload: A | B) -> None: ...

    document = contract_of(server)
    schemas = document["components"]["schemas"]
    assert message(document, "put", "call") == {"$ref": "#/components/schemas/Holder"}
    assert schemas["Holder"]["properties"]["wide"] == {"$ref": "#/components/schemas/Wide"}
    assert schemas["Wide"]["properties"]["when"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert schemas["Pair"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert message(document, "either", "result") == {"type": "null"}
    assert message(document, "hold", "call") == {}
    text = json.dumps(document)
    assert "prefixItems" not in text
    assert "discriminator" not in text


def test_types_of_one_name_keep_schemas_of_their_own() -> None:
    server = make_server()
    inner = [type(name, (BaseModel,), {"__annotations__": {name.lower(): int}}) for name in ("A", "A2")]

    @server.register
    def both(conn: Any, payload: A) -> tuple[inner[0], inner[1]]: ...

    document = contract_of(server)
    schemas = document["components"]["schemas"]
    found = [schemas[each["$ref"].rpartition("/")[2]] for each in message(document, "both", "result")["items"]]
    assert [list(each["properties"]) for each in found] == [["a"], ["a2"]]
    assert message(document, "both", "call") == {"$ref": "#/components/schemas/A"}
    assert list(schemas["A"]["properties"]) == ["type", "x"]


def test_what_the_server_sends_has_all_fields_that_it_always_sends() -> None:
    server = make_server()

    @server.register
    def ask(conn: Any, payload: A) -> Answer | None: ...

    @server.register
    def spare(conn: Any, payload: B) -> Sparse: ...

    schemas = contract_of(server)["components"]["schemas"]
    assert schemas["Answer"]["required"] == ["text"]
    assert "required" not in schemas["Sparse"]
    assert schemas["B"]["required"] == ["type"]


class Box(msgspec.Struct, Generic[T]):
    value: T


class Inner(msgspec.Struct):
    text: str = ""


class Outer(msgspec.Struct):
    inner: Inner
    boxes: list[Box[Inner]] = []


class InnerInput(msgspec.Struct):
    text: int


class Person(BaseModel):
    name: str
    age: int = 0


class Party(msgspec.Struct):
    host: Person


def test_types_of_both_directions_have_two_schemas_where_fields_have_defaults() -> None:
    server = make_server()

    @server.register
    def outer(conn: Any, payload: Outer) -> Outer: ...

    @server.register
    def same(conn: Any, payload: Box[A]) -> Box[A]: ...

    @server.register
    def party(conn: Any, payload: Party) -> Party: ...

    @server.register
    def person(conn: Any, payload: Person) -> list[Person]: ...

    server.include(Event("inner-input", InnerInput))
    document = document_of(
        [each for each in server.operations if each.name in ("outer", "same", "party", "person", "inner-input")],
        title="app",
        version="1",
    )
    schemas = document["components"]["schemas"]
    required = {name: schema.get("required", []) for name, schema in schemas.items()}
    assert required == {
        "A": ["type", "x"],
        "Box_A_": ["value"],
        "Box_Inner_": ["value"],
        "Box_Inner_Input": ["value"],
        "Inner": ["text"],
        "InnerInput": ["text"],
        "InnerInput2": [],
        "Outer": ["inner", "boxes"],
        "OuterInput": ["inner"],
        "Party": ["host"],
        "PartyInput": ["host"],
        "Person": ["name", "age"],
        "PersonInput": ["name"],
    }
    assert message(document, "outer", "call") == {"$ref": "#/components/schemas/OuterInput"}
    assert schemas["OuterInput"]["properties"]["inner"] == {"$ref": "#/components/schemas/InnerInput2"}
    assert schemas["Party"]["properties"]["host"] == {"$ref": "#/components/schemas/Person"}
    assert schemas["PartyInput"]["properties"]["host"] == {"$ref": "#/components/schemas/PersonInput"}
    assert message(document, "person", "result")["items"] == {"$ref": "#/components/schemas/Person"}


def test_identity_meta_and_welcome_are_the_first_message_of_a_client_and_its_answer() -> None:
    document = shop.server.asyncapi()
    channels = {name: document["channels"][name] for name in ("hi", "welcome")}
    assert [channel["address"] for channel in channels.values()] == ["~wse:hi", "~wse:welcome"]
    assert message(document, "hi", "hi") == {
        "type": "object",
        "properties": {
            "identity": {"$ref": "#/components/schemas/Login"},
            "meta": {"$ref": "#/components/schemas/Device"},
        },
        "required": ["identity", "meta"],
    }
    assert message(document, "welcome", "welcome") == {"$ref": "#/components/schemas/Welcome"}
    assert document["components"]["schemas"]["Welcome"]["required"] == ["user", "unread"]
    opening = read(document).opening
    assert opening is not None
    assert opening.doc == "Everybody has a name."


@pytest.mark.parametrize(
    ("hint", "typescript", "python"),
    [
        (
            Handshake[str],
            ["identity: string"],
            ["identity: str | Callable", "meta: dict[str, Any] | None", "-> Any: ..."],
        ),
        (Handshake[Any, A], ["meta: A"], ["identity: Any", "meta: A | None", "-> Any: ..."]),
        (Handshake[Any, dict[str, Any], A], ["welcome: A"], ["identity: Any", "-> A: ..."]),
        (Handshake, [], []),
    ],
)
def test_clients_know_what_is_declared_of_identity_meta_and_welcome(
    hint: Any, typescript: list[str], python: list[str]
) -> None:
    server = WseServer(port=4200)

    def identify(auth: Any) -> None: ...

    identify.__annotations__["auth"] = hint
    server.identify(identify)
    server.channel.on("hi", lambda conn, payload: None)  # an application may have such a name
    contract = read(server.asyncapi())
    assert [entry.name for entry in contract.entries if entry.section == "send"] == ["hi"]
    for made, expected in ((typescript_of(contract), typescript), (python_of(contract), python)):
        assert [text for text in expected if text not in made] == []
    for name in ("identity", "meta", "welcome"):
        assert (f"  {name}: " in typescript_of(contract)) == (f"{name}: " in "".join(typescript))
    assert ("ClientOptions" in python_of(contract)) == bool(python)
    compile(python_of(contract), "client.py", "exec")


def test_the_options_that_generated_clients_pass_on_are_those_of_the_client() -> None:
    taken = set(inspect.signature(WseClient).parameters) - {"url", "identity", "meta"}
    assert set(ClientOptions.__annotations__) == taken


def test_one_name_may_be_a_procedure_and_a_message_in_both_directions() -> None:
    server = make_server()
    said, asked = Event("chat", str), ClientProcedure("chat", int, str)
    server.include(said)
    server.include(asked)

    @server.register("chat")
    def call(conn: Any, payload: int) -> str: ...

    @server.channel.on("chat")
    def listen(conn: Any, payload: str) -> None: ...

    operations = [each for each in server.operations if each.name == "chat"]
    document = document_of(operations, title="app", version="1")
    assert list(document["operations"]) == [
        "receiveCall.chat",
        "receiveMessage.chat",
        "sendCall.chat",
        "sendMessage.chat",
    ]
    assert [entry.section for entry in read(document).entries] == ["call", "send", "register", "on"]


def test_names_that_references_cannot_have_are_kept() -> None:
    server = make_server()
    for name in ("a/b ~", "{x}", "notes:add", 5):
        server.register(name, lambda conn, payload: 1)
    document = contract_of(server)
    assert [channel["address"] for channel in document["channels"].values()] == [None, "a/b ~", "notes:add", None]
    assert sorted((str(entry.name), entry.section) for entry in read(document).entries) == [
        ("5", "call"), ("a/b ~", "call"), ("notes:add", "call"), ("{x}", "call"),
    ]  # fmt: skip


def test_a_server_gives_its_contract_with_its_address() -> None:
    document = make_server().asyncapi(title="Chat", version="2.1.0", description="Talk.")
    assert document["info"] == {"title": "Chat", "version": "2.1.0", "description": "Talk."}
    assert document["servers"]["default"] == {"host": "127.0.0.1:4200", "protocol": "ws"}


class Tree(msgspec.Struct, rename="camel"):
    left_side: Tree | None = None


class Color(enum.Enum):
    RED = "red"


def test_generic_and_recursive_types_and_enums_have_names_that_programs_can_use() -> None:
    server = make_server()

    @server.register
    def grow(conn: Any, payload: Tree) -> Box[int]: ...

    @server.register
    def paint(conn: Any, payload: dict[str, Color]) -> Box[Tree] | None: ...

    typescript = typescript_of(read(contract_of(server)))
    assert "grow: { payload: TreeInput; result: Box_int }" in typescript
    assert "paint: { payload: Record<string, Color>; result: Box_Tree | null }" in typescript
    assert "export interface Tree {\n  leftSide: Tree | null\n}" in typescript
    assert "export interface TreeInput {\n  leftSide?: TreeInput | null\n}" in typescript
    assert "export type Color = 'red'" in typescript
    compile(python_of(read(contract_of(server))), "client.py", "exec")


async def test_a_server_shows_its_contract_to_people_when_asked() -> None:
    server = WseServer(lambda auth: auth.accept("ada"), port=0, contract=True)
    server.register("<script>", lambda conn, payload: 1)
    async with server, httpx.AsyncClient(base_url=server.url.replace("ws:", "http:")) as web:
        page = await web.get("/contract")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert "&lt;script&gt;" in page.text
        assert "<script" not in page.text
        style = page.text.partition("<style>")[2].partition("</style>")[0]
        assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
        assert (await web.get("/contract.json")).json() == server.asyncapi()
        assert '<a href="/contract.json">' in page.text


def test_the_page_shows_everything_that_a_contract_has() -> None:
    page = page_of(shop.server.asyncapi(title="shop"), "/contract.json")
    for text in (
        "Everybody has a name.",
        "type-Login",
        "type-Welcome",
        "notes.missed",
        "The oldest first.",
        "type-Note",
        "full-name",
        "note-added",
        "How many.",
        "client.busy",
    ):
        assert text in page


async def test_the_page_is_built_once_until_something_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    server = WseServer(lambda auth: auth.accept("ada"), port=0, contract=True)
    built: list[int] = []
    asyncapi = server.asyncapi
    for path, route in server._lifecycle.options.routes.items():
        if path.startswith("/contract"):
            monkeypatch.setattr(route, "_make", lambda: built.append(1) or asyncapi())
    server.channel.on("talk", lambda conn, payload: None)
    changes = [
        lambda: server.register("one", lambda conn, payload: 1),
        lambda: server.channel.on("two", lambda conn, payload: 1),
        lambda: server.channel.on("two", lambda conn, payload: 1, tags=["again"]),
        lambda: server.unregister("one"),
        lambda: server.include(Event("three", int)),
    ]
    async with server, httpx.AsyncClient(base_url=server.url.replace("ws:", "http:")) as web:
        for change in changes:
            change()
            built.clear()
            for path in ("/contract", "/contract.json") * 2:
                await web.get(path)
            assert len(built) == 2
            assert (await web.get("/contract.json")).json() == asyncapi()


async def test_the_contract_is_not_shown_to_people_unless_asked() -> None:
    server = WseServer(lambda auth: auth.accept("ada"), port=0, path="/ws")
    async with server, httpx.AsyncClient(base_url=server.url.replace("ws:", "http:").removesuffix("/ws")) as web:
        assert (await web.get("/contract")).status_code == 404


def test_the_command_prints_the_contract_and_nothing_else_with_the_current_folder_on_the_path() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wse", "contract", "shop:server"],
        cwd=SUPPORT,
        env=unmeasured() | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    assert document["asyncapi"] == "3.0.0"
    assert document["operations"]["receiveCall.notes.missed"]["description"].endswith("The oldest first.")
    assert done.stderr == "an application may print what it likes\n"


def test_clients_of_the_file_are_those_of_the_server(tmp_path: Path) -> None:
    file = str(tmp_path / "contract.json")
    run("contract", "shop:server", "--app-dir", SUPPORT, "-o", file)
    for language in ("typescript", "python"):
        of_server = run("generate", language, "shop:server", "--app-dir", SUPPORT).stdout
        assert run("generate", language, file).stdout == of_server
        assert run("generate", language, "-", input=Path(file).read_text()).stdout == of_server
        output = str(tmp_path / "src" / language)
        run("generate", language, file, "-o", output)
        assert Path(output).read_text() == of_server
        run("generate", language, file, "-o", output, "--check")
        Path(output).write_text("old")
        assert "is not up to date" in run("generate", language, file, "-o", output, "--check", code=1).output


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.json", "No such file"),
        ("-", "this is no AsyncAPI 3 document"),
        ("nowhere:server", "there is no module 'nowhere'"),
        ("support.shop:shop", "has no shop"),
    ],
)
def test_a_source_that_is_no_contract_is_said_to_be_none(source: str, says: str) -> None:
    assert says in run("generate", "python", source, input='{"openapi": "3.1.0"}', code=2).output


def test_a_document_that_lacks_something_is_refused() -> None:
    with pytest.raises(ContractError, match="lacks something"):
        read({"asyncapi": "3.0.0", "info": {}, "operations": {"x": {"action": "receive"}}})


def test_names_and_texts_that_would_break_a_program_do_not() -> None:
    Odd = msgspec.defstruct("class", [("from_", int), ("q", str)], rename={"from_": "a 'b'"})
    Odd.__doc__ = 'It ends */ with """ and "'
    Odd.__module__ = __name__
    server = make_server()

    def fn(conn, payload): ...

    fn.__annotations__ = {"payload": Odd, "return": None}
    fn.__doc__ = 'A "quoted" \\ text */'
    server.register('it\'s "odd"\n', fn)
    contract = read(contract_of(server))
    typescript = typescript_of(contract)
    assert "'it\\'s \"odd\"\\n': { payload: class_; result: null }" in typescript
    assert typescript.count("*/") == typescript.count("/**")
    compile(python_of(contract), "client.py", "exec")


def test_an_array_of_a_union_that_begins_with_an_object_is_one_of_all_of_it() -> None:
    server = make_server()
    server.register("all", lambda conn, payload: None)
    document = contract_of(server)
    union = {"anyOf": [{"type": "object", "properties": {"x": {"type": "integer"}}}, {"type": "null"}]}
    document["components"] = {"schemas": {"Several": {"type": "array", "items": union}}}
    assert "export type Several = ({ x?: number } | null)[]" in typescript_of(read(document))


@pytest.mark.parametrize("word", ["function", "default", "super", "string", "any", "object", "void", "property"])
def test_no_type_of_a_client_has_a_word_of_the_language_as_its_name(word: str) -> None:
    Odd = msgspec.defstruct(word, [("x", int)], module=__name__)
    server = make_server()

    def fn(conn, payload): ...

    fn.__annotations__ = {"payload": Odd, "return": None}
    server.register("odd", fn)
    contract = read(contract_of(server))
    if word == "property":  # which the Python client uses
        assert "class property(" not in python_of(contract)
    else:
        typescript = typescript_of(contract)
        assert f"interface {word} " not in typescript
        assert re.search(rf"export interface {word}\w+ ", typescript)


def test_an_empty_contract_makes_clients_that_know_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = read(document_of([], title="app", version="1"))
    assert "  send: {}\n" in typescript_of(contract)
    compile(python_of(contract), "client.py", "exec")


@pytest.fixture
def client(tmp_path, monkeypatch):
    """The folder of the generated client."""
    run("generate", "python", "shop:server", "--app-dir", SUPPORT, "-o", str(tmp_path / "shop_client.py"))
    for name in ("shop_usage.py", "shop_mistakes.py"):
        (tmp_path / name).write_bytes(Path(SUPPORT, "clients", name).read_bytes())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("shop_client", "shop_usage"):
        sys.modules.pop(name, None)


async def test_the_generated_python_client_talks_to_a_real_server(client) -> None:
    usage = importlib.import_module("shop_usage")
    async with shop.server:
        assert await usage.main(shop.server.url) == [
            "ada on a terminal", "Hello",
            [{"id": 42, "text": "Lunch?"}], "notes.closed", [1, 2], 4, "ok", "Ada", "Ada Lovelace", [0, 1, 2],
        ]  # fmt: skip


def test_the_generated_python_client_is_laid_out_as_by_a_formatter(client) -> None:
    text = (client / "shop_client.py").read_text()
    assert "# fmt: off\n" in text  # a formatter would break types that are longer than a line
    (client / "shop_client.py").write_text(text.replace("# fmt: off\n", ""))
    checked = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", "shop_client.py"]
    subprocess.run(checked, cwd=client, check=True, capture_output=True)


def mypy(folder: Path, *args: str) -> list[str]:
    (folder / "mypy.ini").write_text("[mypy]\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(folder / "cache"), *args],
        cwd=folder,
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if " error: " in line]


def test_a_wrong_name_or_payload_is_an_error_of_mypy(client) -> None:
    errors = mypy(client, "--follow-imports=silent", "shop_mistakes.py", "shop_client.py")
    assert errors == Path(SUPPORT, "clients", "shop_mistakes.txt").read_text().splitlines()


@pytest.mark.slow
def test_the_generated_python_client_is_clean_for_type_checkers(client) -> None:
    assert mypy(client, "--strict", "shop_client.py", "shop_usage.py") == []
    checked = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "shop_client.py", "shop_usage.py"]
    done = subprocess.run(checked, cwd=client, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
