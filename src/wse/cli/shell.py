"""`wse shell`: a prompt at which calls and messages are typed, while those of the server are shown.

The line is edited by the standard library's readline, which has history and completion: another library would be a
dependency for little more. Where there is no readline, as on Windows, the prompt works without both.
"""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from wse.cli.connection import Connection, client_options
from wse.cli.output import describe, fails_plainly, to_json
from wse.client.blocking import BlockingClient
from wse.errors import WseError

readline: Any
try:
    import readline
except ImportError:  # pragma: no cover - on Windows
    readline = None

PROMPT = "wse> "
HISTORY = Path("~/.wse_history")
HELP = """\
call NAME [JSON]     call a procedure, and print its result
stream NAME [JSON]   call a procedure that yields, and print the items; Ctrl-C ends it
send TYPE [JSON]     send a message
status               print the state of the client
help                 print this
exit                 end, as Ctrl-D does
Messages of the server are printed when they come."""


@click.command("shell")
@client_options
@click.option("--reconnect", is_flag=True, help="Reconnect when the connection is lost.")
@fails_plainly
def shell_command(connection: Connection, reconnect: bool) -> None:
    """Type calls and messages at a prompt, with history and completion; `help` lists the commands."""
    client = connection.blocking(reconnect=reconnect)
    with client:
        names = names_of(connection) if sys.stdin.isatty() else ()  # a script completes nothing
        is_well = Shell(client, names).run()
    sys.exit(0 if is_well else 1)


def names_of(connection: Connection) -> frozenset[str]:
    """The names of procedures and messages, from the contract of a server that has it at `/contract.json`."""
    parts = urlsplit(connection.url)
    if parts.hostname is None:  # a Unix socket
        return frozenset()
    make = http.client.HTTPSConnection if parts.scheme == "wss" else http.client.HTTPConnection
    http_connection = make(parts.hostname, parts.port, timeout=2)
    try:
        http_connection.request("GET", "/contract.json", headers=connection.headers)
        response = http_connection.getresponse()
        channels = msgspec.json.decode(response.read(1 << 20))["channels"] if response.status == 200 else {}
        return frozenset(str(channel.get("address") or name) for name, channel in channels.items())
    except (
        OSError,
        http.client.HTTPException,
        msgspec.DecodeError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ):
        return frozenset()  # it has none, or another one
    finally:
        http_connection.close()


class Shell:
    """The prompt.

    Args:
        client: A client that is connected.
        names: Names of the server, for the completion, which learns more from what is typed and heard.
    """

    def __init__(self, client: BlockingClient, names: Iterable[str] = ()) -> None:
        self._client = client
        self._names = set(names)
        self._lock = threading.Lock()
        self._is_prompting = False
        self._commands: dict[str, Callable[..., None]] = {
            "call": self._call,
            "stream": self._stream,
            "send": self._send,
            "status": lambda: self._print(str(client.status)),
            "help": lambda: self._print(HELP),
        }
        client.when.ignored(self._heard)
        client.when.updated(lambda status: self._print(f"# {status}", to=sys.stderr))
        client.when.error(lambda error: self._print(f"# {describe(error)}", to=sys.stderr))

    def run(self) -> bool:
        """Read and do, until the end of the input.

        Returns:
            Whether all went well, for a script that is not typed but read; at a terminal, always.
        """
        interactive = sys.stdin.isatty()
        is_well = True
        if interactive and readline is not None:
            self._prepare()
        try:
            while (line := self._read(interactive)) is not None and line.strip() not in ("exit", "quit"):
                try:
                    is_well &= self.do(line)
                except KeyboardInterrupt:
                    self._print("")
        finally:
            if interactive and readline is not None:
                self._keep_history()
        return interactive or is_well

    def do(self, line: str) -> bool:
        """Do what a line says; returns whether that went well."""
        words = line.strip().split(maxsplit=2)
        if not words:
            return True
        command = self._commands.get(words[0])
        if command is None:
            self._print(f"there is no command {words[0]}: help lists them", to=sys.stderr)
            return False
        try:
            arguments: list[Any] = words[1:2]
            if len(words) > 2:
                arguments.append(msgspec.json.decode(words[2]))
            command(*arguments)
        except WseError as exc:
            self._print(describe(exc), to=sys.stderr)
        except msgspec.DecodeError as exc:
            self._print(f"{words[2]!r} is not JSON: {exc}", to=sys.stderr)
        except TypeError:
            self._print(f"usage: {next(row for row in HELP.splitlines() if row.startswith(words[0]))}", to=sys.stderr)
        else:
            self._names.update(words[1:2])
            return True
        return False

    def complete(self, begun: str, line: str) -> list[str]:
        """What a word may become.

        Args:
            begun: The word, as far as it is typed.
            line: The line before it.
        """
        before = line.split()
        if not before:
            words: Iterable[str] = (*self._commands, "exit")
        else:
            words = self._names if len(before) == 1 and before[0] in ("call", "stream", "send") else ()
        return sorted(f"{word} " for word in words if word.startswith(begun))

    # Commands.

    def _call(self, name: str, payload: Any = None) -> None:
        self._print(to_json(self._client.call(name, payload)))

    def _stream(self, name: str, payload: Any = None) -> None:
        with self._client.stream(name, payload) as items:
            for item in items:
                self._print(to_json(item))

    def _send(self, type: str, payload: Any = None) -> None:
        self._client.send(type, payload)

    # The terminal.

    def _heard(self, type: Any, payload: Any, stamp: Any) -> None:
        self._names.add(str(type))
        self._print(f"{type} {to_json(payload)}")

    def _read(self, interactive: bool) -> str | None:
        while True:
            try:
                if not interactive:
                    return sys.stdin.readline() or None
                self._is_prompting = True
                return input(PROMPT)
            except KeyboardInterrupt:
                self._print("")  # as in other shells, it only drops the line
            except EOFError:
                self._print("")
                return None
            finally:
                self._is_prompting = False

    def _print(self, text: str, to: Any = None) -> None:
        """Print a line; a line that is being typed moves below it."""
        with self._lock:
            if not self._is_prompting:
                # In one write, between whose parts the prompt cannot come.
                print(f"{text}\n", end="", file=to or sys.stdout, flush=True)
                return
            typed = "" if readline is None else readline.get_line_buffer()
            print(f"\r\x1b[K{text}\n{PROMPT}{typed}", end="", flush=True)  # noqa: T201 - the prompt

    def _prepare(self) -> None:
        readline.set_completer_delims(" ")
        readline.set_completer(self._complete_word)
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
        with suppress(OSError):  # there is none yet
            readline.read_history_file(HISTORY.expanduser())

    def _complete_word(self, begun: str, index: int) -> str | None:
        words = self.complete(begun, readline.get_line_buffer()[: readline.get_begidx()])
        return words[index] if index < len(words) else None

    def _keep_history(self) -> None:
        readline.set_history_length(1000)
        try:
            readline.write_history_file(HISTORY.expanduser())
        except OSError as exc:
            self._print(f"the history cannot be kept: {exc}", to=sys.stderr)
