"""What happened in a run, read from the logs of its processes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field

BEFORE, AFTER = 1.0, 8.0
"""A message is sent in calm if no fault begins until 8 s later, and none has ended within the last second."""


CUTS = ("cut", "flap", "part-recv", "part-pub", "stop", "stop-short", "stop-kill")
"""Faults that keep a node from the engine."""


@dataclass
class Fault:
    kind: str
    node: str
    began: float
    ended: float = math.inf
    """When the cause was gone."""
    healed: float = math.inf
    """When all nodes were ready again."""
    breaks_promises: bool = True
    """Whether messages may be lost meanwhile."""


@dataclass
class Connection:
    id: str
    label: str
    cid: str
    node: str
    kind: str
    up: float
    down: float = math.inf


@dataclass
class History:
    """The history of a run.

    Attributes:
        keeps_register: Whether the engine has its register again when it is back.
        start: When it began, by the monotonic clock of the machine, as all times.
        messages: What clients received: `(kind, conn, sender, number, room)` to the time.
        sent: What clients sent, by the kind of the entry.
        rooms: By connection and room, when it has entered or left.
        published: Entries of publishers.
        events: Entries of nodes.
        kept: Messages that a node kept because the broker was away: `(sender, number, receiver)`.
        readiness: By node, the times and results of `/readyz`.
    """

    keeps_register: bool = False
    start: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    killed: list[tuple[float, str]] = field(default_factory=list)
    connections: dict[str, Connection] = field(default_factory=dict)
    of_user: dict[str, list[Connection]] = field(default_factory=lambda: defaultdict(list))
    received: list[tuple[float, str, str, str, int, str]] = field(default_factory=list)
    messages: dict[tuple[str, str, str, int, str], float] = field(default_factory=dict)
    sent: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    rooms: dict[tuple[str, str], list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    asked: list = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    published: list = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    kept: set[tuple[str, int, str]] = field(default_factory=set)
    readiness: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def at(self, time):
        """A time of the run, in seconds from its start."""
        return f"{time - self.start:.2f}"

    def is_calm(self, time, before=BEFORE, after=AFTER):
        return all(
            time + after < fault.began or time - before > fault.healed + 1.0
            for fault in self.faults
            if fault.breaks_promises
        )

    def may_lose_what_was_kept(self, time, node):
        """Whether a message for that node, which another one keeps at that time, need not arrive there.

        Another fault may begin before those of that time are over, and what is then under way may be lost. Or the node
        has a fault of its own: others do not wait for it longer than its lease lasts.
        """
        faults = [fault for fault in self.faults if fault.breaks_promises]
        end = max((fault.healed for fault in faults if fault.began <= time <= fault.healed), default=time)
        return any(
            time < fault.began <= end + 1
            or (fault.kind in CUTS and fault.node == node and fault.began <= end and time <= fault.healed)
            for fault in faults
        )

    def transit(self, time):
        """Seconds in which a message from a client has certainly reached its node, which may be asleep."""
        return 2 if all(time > fault.healed + 1 or time + 2 < fault.began for fault in self.faults) else AFTER

    def near(self, time):
        """The faults at that time, for people who read a violation."""
        near = [f for f in self.faults if f.began - 1 <= time <= f.healed + AFTER]
        return ", ".join(f"{f.kind} of {f.node} at {self.at(f.began)}-{self.at(f.healed)}" for f in near) or "calm"

    def events_of(self, *names):
        return [entry for entry in self.events if entry["event"] in names]


def lines(path):
    """The entries of a log; the last one may be cut off by a kill."""
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def read(directory):
    history = History()
    _read_run(history, directory / "run.log")
    _read_clients(history, directory / "clients.log")
    history.published = [*lines(directory / "publishers.log")]
    entries = [entry for path in directory.glob("n[0-9].log") for entry in lines(path)]
    history.events = sorted(entries, key=lambda entry: entry["t"])
    history.kept = {(e["sender"], e["n"], e["to"]) for e in history.events_of("kept")}
    return history


def _read_run(history, path):
    under_way = {}
    for entry in lines(path):
        time, key = entry["t"], (entry.get("kind"), entry.get("node"))
        match entry["event"]:
            case "begin":
                history.start = time
                history.keeps_register = entry.get("keeps_register", False)
            case "fault":
                under_way[key] = fault = Fault(*key, time, breaks_promises=entry["breaks_promises"])
                history.faults.append(fault)
            case "fault ended":
                under_way[key].ended = time
            case "healed":
                under_way.pop(key).healed = time
            case "killed":
                history.killed.append((time, entry["node"]))
            case "readyz":
                history.readiness[entry["node"]].append((time, entry["status"]))


def _read_clients(history, path):
    for time, event, *what in lines(path):
        match event:
            case "up":
                label, cid, conn, node, kind = what
                history.connections[conn] = connection = Connection(conn, label, cid, node, kind, time)
                history.of_user[cid].append(connection)
            case "down":
                connection = history.connections[what[1]]
                connection.down = min(connection.down, time)
            case "m" | "b" | "r":
                history.received.append((time, event, *what))
                history.messages.setdefault((event, *what), time)
            case "sent" | "sent to all" | "sent to room":
                history.sent[event].append((time, *what))
            case "enter" | "exit":
                history.rooms[what[0], what[1]].append((time, event))
            case "asked":
                history.asked.append((time, *what))
            case "exception":
                history.exceptions.append(what[0])
