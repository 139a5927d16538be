"""Every code block in README.md and docs/, llms.txt included, is run; what the pages say it prints is what it prints.

How the blocks of a page are run, one after the other, in a folder of the page's own:

    ```python                    in one namespace for the whole page; `await` works at top level, as in
                                 `python -m asyncio`
    ```python title="x.py"       saved; a later console block must run it, or a later file must import it
    ```console                   `$ python x.py` and `$ pytest x.py` are run; a program that serves for ever, `uvicorn`
                                 and `wse serve` run on in the background, until the page ends, saves it anew or starts
                                 another one, and must end cleanly by SIGINT; other `wse` commands are run;
                                 `SHOWN` names the few commands that are only shown, and how each is checked
    ```text title="Output"       what the block before it prints, to the letter; without one it must print nothing
    ```json, ```toml             must be well-formed
    ```html, ```js title="x"     saved, for the page's programs to use; the JavaScript must parse, where Node.js is, and
                                 `$ node x.js` is run there
    ```nginx, ```caddy, ```ini, ```dockerfile   are files of examples/deploy/ (by their title, if they have one), which
                                 tests/deploy/ tests
    ```text                      shown only

Port 4200 is replaced by a free one. Lines of output of one paragraph may come in another order in the demo, where
several devices hear the same thing; a line `...` in its transcript stands for what is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from pathlib import Path
from typing import Any

import pytest
import trustme

import wse
import wse.auth
from docs import api
from support.pages import Block, blocks_of
from support.programs import ROOT, Program, free_port, program, unmeasured
from wse import ClientStatus, CloseReason, ErrorCode, ReadyState, WseClient, WseServer

TOP_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs/llms.txt"]
PAGES = [*TOP_PAGES, *sorted((ROOT / "docs").rglob("*.md"))]
DEPLOYED = {"caddy": "Caddyfile", "nginx": "nginx.conf", "ini": "wse.service", "dockerfile": "Containerfile"}
LANGUAGES = {"python", "console", "text", "json", "toml", "html", "js", *DEPLOYED}
PORT = "4200"

SERVING = re.compile(r"(wse serve|uvicorn) (?P<module>\w+):")
IMPORTED = re.compile(r'(?:^(?:from|import) |_MODULE", "|^ROOT_URLCONF = ")(\w+)', re.MULTILINE)
"""A module that a file imports, or that it has Django import."""


def test_blocks_are_found() -> None:
    text = 'a\n```python title="x.py"\n1\n```\n    ```text\n    2\n    ```\n~~~~json\n```\n~~~~\n'
    assert blocks_of(text) == [
        Block("python", "x.py", "1\n", 2),
        Block("text", "", "2\n", 5),
        Block("json", "", "```\n", 8),
    ]
    with pytest.raises(ValueError, match="line 1"):
        blocks_of("```python\n")


class Page:
    """One page on its way."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.blocks = blocks_of(path.read_text())
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.runner = asyncio.Runner()
        self.saved: dict[str, Block] = {}
        self.background: dict[str, tuple[Program, str]] = {}  # with the output shown
        self.ran: set[Block] = set()
        self.port = free_port()

    def run(self) -> None:
        with self.runner:
            try:
                for index, block in enumerate(self.blocks):
                    following = self.blocks[index + 1] if index + 1 < len(self.blocks) else None
                    expected = following.code if following is not None and following.is_output else ""
                    try:
                        self.run_block(block, self.localised(expected))
                    except BaseException as exc:
                        exc.add_note(f"in the block at {self.path.relative_to(ROOT)}:{block.line}")
                        raise
                for name in tuple(self.background):
                    self.stop(name)
                self.check_left_over()
            finally:
                for server, _ in self.background.values():
                    server.kill()

    def run_block(self, block: Block, expected: str) -> None:
        assert block.lang in LANGUAGES, f"what is to be done with {block.lang or 'a block without a language'}?"
        code = self.localised(block.code)
        if block.lang == "python" and block.title:
            self.save(block, code)
        elif block.lang == "python":
            self.ran.add(block)
            assert self.run_python(block, code) == expected
        elif block.lang == "console":
            for command, output in commands_of(code):
                self.run_command(command, output)
            self.ran.add(block)
        elif block.lang in {"html", "js"}:
            assert block.title, "what is not saved is not used by anything"
            (self.folder / block.title).write_text(code)
            if block.lang == "js" and (node := shutil.which("node")):
                (self.folder / "checked.mjs").write_text(code)
                assert run([node, "--check", "checked.mjs"], self.folder) == ""
        elif block.lang in DEPLOYED:
            assert block.code == (ROOT / "examples" / "deploy" / (block.title or DEPLOYED[block.lang])).read_text()
        elif block.lang == "json":
            json.loads(code)
        elif block.lang == "toml":
            tomllib.loads(code)

    def localised(self, text: str) -> str:
        return re.sub(rf"\b{PORT}\b", str(self.port), text)

    def run_python(self, block: Block, code: str) -> str:
        padded = "\n" * block.line + code  # so that tracebacks tell the line of the page
        compiled = compile(padded, str(self.path), "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            if compiled.co_flags & inspect.CO_COROUTINE:
                self.runner.run(asyncio.wait_for(eval(compiled, self.namespace), 30))
            else:
                exec(compiled, self.namespace)
        return stdout.getvalue()

    def save(self, block: Block, code: str) -> None:
        name = block.title
        if name in self.background:
            self.stop(name)
        (self.folder / name).write_text(code)
        self.saved[name] = block
        for module in IMPORTED.findall(code):
            if f"{module}.py" in self.saved:
                self.ran.add(self.saved[f"{module}.py"])

    def stop(self, name: str) -> None:
        server, shown = self.background[name]
        assert server.stop(signal.SIGINT) == 0
        assert server.output == shown
        del self.background[name]

    def run_command(self, command: str, output: str) -> None:
        words = shlex.split(command)
        if words[0] == "python" and words[1] in self.saved:
            block = self.saved[words[1]]
            self.ran.add(block)
            if ".run()" in block.code or "serve_forever()" in block.code:
                server = Program(*words[1:], cwd=self.folder)
                self.background[words[1]] = server, output
                server.wait_until_open(self.port)
            else:
                assert run([sys.executable, *words[1:]], self.folder) == output
        elif (serving := SERVING.match(command)) and (name := f"{serving['module']}.py") in self.saved:
            self.ran.add(self.saved[name])
            for running in tuple(self.background):
                self.stop(running)  # the page's port is for one
            server = Program("-m", *words, "--log-level", "warning", cwd=self.folder)
            self.background[name] = server, output
            server.wait_until_open(self.port)
        elif words[0] == "node" and (self.folder / words[1]).is_file():
            if (node := shutil.which("node")) and (ROOT / "js/node_modules").is_dir():
                assert run([node, "--import", "./browser.js", words[1]], prepared_for_node(self.folder)) == output
        elif words[0] == "wse":
            assert run([sys.executable, "-m", *words], self.folder) == output
        elif words[0] == "pytest" and words[1] in self.saved:
            self.ran.add(self.saved[words[1]])
            args = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", *words[1:]]
            result = run(args, self.folder)
            assert without_seconds(result.splitlines()[-1]) == without_seconds(output.splitlines()[-1])
        else:
            for pattern, check in SHOWN.items():
                if re.fullmatch(pattern, command):
                    check(command, output)
                    return
            raise AssertionError(f"nothing runs or checks the command {command!r}")

    def check_left_over(self) -> None:
        """What a page starts it also ends."""
        assert not asyncio.all_tasks(self.runner.get_loop())
        for name, value in self.namespace.items():
            if isinstance(value, WseServer):
                assert not value._lifecycle.is_listening, f"the page leaves {name} open"
            elif isinstance(value, WseClient):
                assert value._connections.session is None, f"the page leaves {name} open"


def run(args: list[str], cwd: Path) -> str:
    result = subprocess.run(args, cwd=cwd, env=unmeasured(), capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


def prepared_for_node(folder: Path) -> Path:
    """Let the folder's modules import `wse-js`, and have a WebSocket, which Node.js has from version 22 on."""
    modules = folder / "node_modules"
    if not modules.is_dir():
        modules.mkdir()
        (modules / "wse-js").symlink_to(ROOT / "js")
        (modules / "ws").symlink_to(ROOT / "js/node_modules/ws")
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "browser.js").write_text("import { WebSocket } from 'ws'\nglobalThis.WebSocket ??= WebSocket\n")
    return folder


def without_seconds(line: str) -> str:
    return re.sub(r"in [\d.]+s", "in N s", line)


def commands_of(code: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown for it."""
    commands: list[tuple[str, str]] = []
    for line in code.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append((line[2:].strip(), ""))
        elif commands:
            command, output = commands[-1]
            commands[-1] = (command, output + line)
        else:
            raise AssertionError("a console block begins with a command: $ ...")
    return commands


# Commands that are only shown, with what can be checked of them.


def check_pip(command: str, output: str) -> None:
    """The extras exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not output
    for requirement in shlex.split(command)[2:]:
        match = re.fullmatch(r"(\w+)(?:\[([\w,]+)\])?", requirement)
        assert match
        if match[1] == "wse":
            assert set((match[2] or "scram").split(",")) <= set(project["optional-dependencies"])


def check_make(command: str, output: str) -> None:
    """The target exists; that it works is for those who run it, which the tests cannot: it runs them."""
    makefile = (ROOT / "Makefile").read_text()
    target = shlex.split(command)[1]
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"


def check_demo(command: str, output: str) -> None:
    """The transcript is what the demo prints."""
    port = free_port()
    with program("examples/chat/demo.py", "--port", str(port)) as demo:
        # Another port than 4200 shows in the command to join, too.
        printed = demo.read_until(f"hopper --url ws://127.0.0.1:{port}\n").replace(f" --url ws://127.0.0.1:{port}", "")
        assert_excerpt(paragraphs(output), paragraphs(printed))
        assert demo.stop(signal.SIGINT) == 0


def assert_excerpt(shown: list[list[str]], printed: list[list[str]]) -> None:
    """All paragraphs shown are printed, in this order; the paragraph `...` stands for any number of them."""
    rest = iter(printed)
    left_out = False
    for paragraph in shown:
        if paragraph == ["..."]:
            left_out = True
            continue
        following = next((each for each in rest if not left_out or each == paragraph), None)
        assert following == paragraph
        left_out = False
    assert left_out or next(rest, None) is None, "the transcript ends too early"


def test_an_excerpt_leaves_out_only_what_it_says() -> None:
    printed = [["a"], ["b"], ["c"]]
    for shown in ([["a"], ["b"], ["c"]], [["..."], ["c"]], [["a"], ["..."]], [["a"], ["..."], ["c"]]):
        assert_excerpt(shown, printed)
    for shown in ([["a"], ["c"]], [["b"], ["..."]], [["a"], ["b"]], [["..."], ["d"]], [["..."], ["c"], ["b"]]):
        with pytest.raises(AssertionError):
            assert_excerpt(shown, printed)


def paragraphs(text: str) -> list[list[str]]:
    text = re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:PORT", text.strip())
    text = re.sub(r"\S+ (examples/chat/client\.py)", r"python \1", text)  # the environment's path is its own affair
    text = re.sub(r"^\.\.\.$", "\n...\n", text, flags=re.MULTILINE)
    return [sorted(paragraph.splitlines()) for paragraph in re.split(r"\n\n+", text.strip())]


def check_example(command: str, output: str) -> None:
    """The program exists; tests/unit/test_examples.py runs it."""
    assert (ROOT / shlex.split(command)[1]).is_file()


def check_application(command: str, output: str) -> None:
    """The application exists; a test of its own runs it by the command in its docstring."""
    folder, module = re.fullmatch(r"uvicorn --app-dir (\S+) (\w+):app", command).groups()  # type: ignore[union-attr]
    assert command in (ROOT / folder / f"{module}.py").read_text()


def check_tests(command: str, output: str) -> None:
    """The tests exist."""
    assert (ROOT / shlex.split(command)[3]).is_file()


SHOWN = {
    r"pip install .*": check_pip,
    r"make demo": check_demo,
    r"make [\w-]+( .*)?": check_make,
    r"python examples/\S+\.py.*": check_example,
    r"uvicorn --app-dir examples/.*": check_application,
    r"\.venv/bin/python -m pytest .*": check_tests,
}


def certificates(folder: Path) -> None:
    """The files that the page on TLS takes for given."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    client = authority.issue_cert(common_name="ada")
    client.private_key_pem.write_to_path(folder / "client-key.pem")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")


PREPARE = {"docs/how-to/tls.md": certificates}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if prepare := PREPARE.get(path.relative_to(ROOT).as_posix()):
        prepare(tmp_path)
    page = Page(path, tmp_path)
    page.run()
    runnable = [block for block in page.blocks if block.lang in {"python", "console"}]
    not_run = [f"{path.name}:{block.line}" for block in runnable if block not in page.ran]
    assert not not_run, "blocks that nothing ran"
    assert len(page.ran) == len(runnable)
    for index, block in enumerate(page.blocks):
        assert not block.is_output or page.blocks[index - 1].lang == "python", f"line {block.line}: whose output?"


def test_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*[\w.-]+\.(?:py|js|ts|md)|(?:\w+/)+)`", text))
    assert len(named) > 50
    folders = (ROOT, ROOT / "src/wse", ROOT / "js")
    made = {"site/", "dist/"}  # by `make docs` and `make dist`
    assert not {name for name in named - made if not any((folder / name).exists() for folder in folders)}


def test_preparations_belong_to_pages() -> None:
    assert {ROOT / name for name in PREPARE} <= set(PAGES)


CODES = (ROOT / "docs/reference/codes.md").read_text()


@pytest.mark.parametrize("enum", [ErrorCode, CloseReason, ClientStatus, ReadyState])
def test_page_of_codes_is_complete(enum: type[ErrorCode]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section(CODES, enum.__name__), re.MULTILINE))
    assert rows == {member.name: str(member.value) or '""' for member in enum}


def test_page_of_logs_names_every_kind() -> None:
    kind_in_code = re.compile(r'(?:"kind": |\blog\.event\()f?"([\w-]+)')
    kinds = {kind for path in (ROOT / "src").rglob("*.py") for kind in kind_in_code.findall(path.read_text())}
    page = (ROOT / "docs/how-to/logs.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `kind` |"))
    assert set(re.findall(r"`([\w-]+)[:`]", row)) - {"kind"} == kinds


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_reference_has_every_public_name() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    names = {f"wse.{name}" for name in wse.__all__}
    names |= {f"wse.auth.{name}" for name in wse.auth.__all__} | {"wse.testing.connect"}
    documented = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    assert names <= documented, "names without a place in docs/reference/"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        test
        for page in ("explanation/guarantees.md", "reference/brokers.md")
        for test in re.findall(r"`(\S+\.py)` `(test_\w+)`", (ROOT / "docs" / page).read_text())
    ],
)
def test_what_is_promised_has_its_test(file: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def test_every_promise_names_a_test() -> None:
    rows = re.findall(r"^\| (?!promise|---).*$", (ROOT / "docs/explanation/guarantees.md").read_text(), re.MULTILINE)
    assert rows
    assert [row for row in rows if not re.search(r"\| `\S+\.py` `test_\w+` \|$", row)] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = set(re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert navigation == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_the_api_at_a_glance_is_that_of_the_docstrings() -> None:
    assert api.PAGE.read_text() == api.make_page(), "run it again: .venv/bin/python tests/docs/api.py"


def test_the_page_for_language_models_links_to_every_page() -> None:
    links = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#]+)", TOP_PAGES[2].read_text())}
    stubs = {ROOT / f"docs/reference/{name}.md" for name in api.TITLES}  # the API at a glance stands for these
    assert set(PAGES[len(TOP_PAGES) :]) - links - stubs <= {
        ROOT / "docs/index.md",
        ROOT / "docs/reference/differences.md",
    }


def test_links_of_the_top_pages() -> None:
    """mkdocs checks those of docs/ itself."""
    for page in TOP_PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_figures_of_the_front_page_are_those_of_the_benchmark() -> None:
    columns = ["call, 1 in flight", "fan-out, 1 in flight", "idle connection"]
    measured = {name: table_row("docs/explanation/speed.md", name) for name in ("server", *PEERS)}
    for column, label in zip(columns, ("call and its answer", "broadcast", "memory"), strict=True):
        index = measured["server"].index(column)
        shown = next(row for row in table_rows("README.md") if label in row[0])
        assert shown[1:3] == [measured[name][index].split(" (")[0] for name in PEERS]


PEERS = ("wse", "python-socketio, uvicorn")


def table_rows(page: str) -> list[list[str]]:
    lines = (ROOT / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def table_row(page: str, name: str) -> list[str]:
    return next(row for row in table_rows(page) if row[0] == name)
