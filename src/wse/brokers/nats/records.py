"""The records of users in NATS's bucket, as bytes: a line for each device, and for each transition.

n <generation> <last place>
d <connection> <node> <place> <away: a number of `Away`>
t <node> <generation> <code> <reason>            in that node's outbox
c <node> <generation> <code> <reason>            claimed by that node
"""

from __future__ import annotations

import random
from urllib.parse import quote, unquote

from wse.brokers.placement import UserRecord
from wse.core.ports.broker import Away, Device, Transition


def new_generation() -> int:
    """The generation of a new record: even, and not one of the earlier records of the user, which left no trace."""
    return 2 * random.getrandbits(30)


def read_record(user: str, value: bytes) -> UserRecord:
    record = UserRecord(user)
    for line in value.decode().splitlines():
        kind, *fields = line.split(" ")
        if kind == "n":
            record.generation, record.last_place = int(fields[0]), int(fields[1])
        elif kind == "d":
            conn_id, node, place, away = fields
            record.devices[conn_id] = Device(user, conn_id, node, int(place), Away(int(away)))
        else:
            node, generation, code, *reason = fields
            transition = Transition(user, int(generation), int(code), unquote(" ".join(reason)))
            (record.pending if kind == "t" else record.claimed).append((node, transition))
    return record


def write_record(record: UserRecord) -> bytes:
    """The record as bytes; empty when nothing of it is needed."""
    if record.is_empty:
        return b""
    lines = [f"n {record.generation} {record.last_place}"]
    lines += [f"d {d.conn_id} {d.node} {d.place} {d.away:d}" for d in record.devices.values()]
    for kind, transitions in ("t", record.pending), ("c", record.claimed):
        lines += [f"{kind} {node} {t.generation} {t.code} {quote(t.reason)}" for node, t in transitions]
    return "\n".join(lines).encode()
