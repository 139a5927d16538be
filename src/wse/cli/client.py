"""The commands that talk to a server, or to a cluster: `call`, `send`, `listen` and `publish`."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from queue import SimpleQueue
from typing import Any

import click

from wse.cli.connection import PROTOCOLS, Connection, client_options
from wse.cli.output import JSON, fails_plainly, print_json
from wse.errors import WseError
from wse.publisher import Publisher


@click.command("call")
@client_options
@click.argument("name")
@click.argument("payload", type=JSON, required=False)
@click.option("--stream", is_flag=True, help="The procedure yields items: print each as a line.")
@fails_plainly
def call_command(connection: Connection, name: str, payload: Any, stream: bool) -> None:
    """Call a procedure, and print its result as JSON.

    PAYLOAD is JSON, or - for standard input.
    """
    with connection.blocking() as client:
        if not stream:
            print_json(client.call(name, payload))
            return
        with client.stream(name, payload, timeout=connection.timeout) as items:
            for item in items:
                print_json(item)


@click.command("send")
@client_options
@click.argument("type")
@click.argument("payload", type=JSON, required=False)
@fails_plainly
def send_command(connection: Connection, type: str, payload: Any) -> None:
    """Send a message to the server.

    PAYLOAD is JSON, or - for standard input.
    """
    with connection.blocking() as client:
        client.send(type, payload)


@click.command("listen")
@client_options
@click.argument("types", nargs=-1)
@click.option("--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--reconnect", is_flag=True, help="Reconnect when the connection is lost.")
@fails_plainly
def listen_command(connection: Connection, types: tuple[str, ...], count: int | None, reconnect: bool) -> None:
    """Print the messages of the given types, or all, one JSON line each, until Ctrl-C.

    The lines of a single type are the payloads. Those of several types, or of all, are objects with type and payload.
    """
    heard: SimpleQueue[Any] = SimpleQueue()
    client = connection.blocking(reconnect=reconnect)
    for kind in types:
        client.on(kind, partial(_put, heard, kind))
    if not types:
        client.when.ignored(partial(_put, heard))
    client.when.gave_up(heard.put)
    # Ctrl-C is how this ends, as much as SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: heard.put(None))
    with client:
        left = count
        while left is None or left > 0:
            message = heard.get()
            if message is None:
                return
            if isinstance(message, WseError):
                raise message
            print_json(message[1] if len(types) == 1 else {"type": message[0], "payload": message[1]})
            left = None if left is None else left - 1


def _put(heard: SimpleQueue[Any], kind: Any, payload: Any, stamp: Any = None) -> None:
    heard.put((kind, payload))


@click.command("publish")
@click.argument("broker")
@click.argument("target", metavar="USER")
@click.argument("type")
@click.argument("payload", type=JSON, required=False)
@click.option("--room", is_flag=True, help="USER is the name of a room.")
@click.option("--number", is_flag=True, help="USER is a number, not a string: 1 and '1' are two users.")
@click.option("--keep", is_flag=True, help="Keep the message for devices that are away, and print its number.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="json", show_default=True)
@fails_plainly
def publish_command(
    broker: str, target: str, type: str, payload: Any, room: bool, number: bool, keep: bool, protocol: str
) -> None:
    """Send a message to a user of a cluster, by its broker: nats://... or redis://...

    PAYLOAD is JSON, or - for standard input.
    """
    try:
        name = int(target) if number else target
        publisher = Publisher(broker, protocol=PROTOCOLS[protocol]())
    except (ValueError, ImportError) as exc:
        raise click.UsageError(str(exc)) from exc

    async def publish() -> None:
        async with publisher:
            if keep:
                kept = publisher.room(name).keep(type, payload) if room else publisher.keep(name, type, payload)
                print_json(await kept)
            elif room:
                publisher.room(name).send(type, payload)
            else:
                publisher.send(name, type, payload)

    asyncio.run(publish())
