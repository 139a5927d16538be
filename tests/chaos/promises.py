"""Compares the history of a run with what is promised.

Each function returns violations as texts. What is promised to be possible, because it cannot be avoided (see
`docs/explanation/guarantees.md`), is counted apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from chaos.history import AFTER, CUTS, read

TOLERANCE = 2.5
"""Seconds within which `joined` and `left` that fire on two nodes may be seen in another order."""

TOLD_WITHIN = 6.5
"""Seconds until a node that does not reach its broker, or is not reached by it, says so."""

PATIENCE = 8.5
"""Seconds for which a receiver must have been connected after a message was sent, so that it counts as missing."""

LEASE = 5.0
"""Seconds; the default of `ClusterSettings`."""

LOSSES = ("engine-restart", "engine-long")
SLEEPS = ("stop", "stop-short", "stop-kill", "block")

MAX_SHOWN = 5
EXPECTED_ERRORS = {
    "wse.server.broker-unavailable",
    "wse.server.broker-deaf",
    "wse.server.broker-lost-messages",
    "wse.server.connection-error",
}


class Report:
    """The violations of a run, what could not be avoided, and figures about it."""

    def __init__(self):
        self.violations = []
        self.unavoidable = []
        self.figures = {}

    def add(self, texts):
        """Add violations of one kind, of which only the first are written out."""
        texts = list(texts)
        self.violations += texts[:MAX_SHOWN]
        if len(texts) > MAX_SHOWN:
            self.violations.append(f"... and {len(texts) - MAX_SHOWN} more like the last one")


def check(directory):
    """The report on the run whose logs are in that directory."""
    history = read(directory)
    report = Report()
    report.add(order(history))
    delivery(history, report)
    rooms_and_all(history, report)
    published(history, report)
    presence(history, report)
    report.add(told(history))
    calls(history, report)
    losses(history, report)
    errors(history, directory, report)
    report.figures |= {
        "connections": len(history.connections),
        "faults": len(history.faults),
        "messages": len(history.received),
    }
    return report


def order(history):
    """Each connection gets the messages of each sender at most once, and in order."""
    last = {}
    for time, kind, conn, sender, number, room in history.received:
        stream = kind, conn, sender, room
        if number <= last.get(stream, 0):
            where = history.connections[conn].label if conn in history.connections else conn
            yield f"{where} got {kind} {number} of {sender} after {last[stream]} at {history.at(time)}"
        last[stream] = max(number, last.get(stream, 0))


def delivery(history, report):
    """What one user sends another arrives: in calm always, on the same node always, and what a node has kept."""
    missing, latencies = defaultdict(list), []
    for time, conn, to, number, node in history.sent["sent"]:
        sender = history.connections[conn]
        if sender.down < time + history.transit(time):
            continue  # it may not have reached the node
        calm = history.is_calm(time)
        for receiver in history.of_user[to]:
            if receiver.up > time or receiver.down < time + PATIENCE:
                continue
            arrived = history.messages.get(("m", receiver.id, conn, number, ""))
            if arrived is not None:
                if calm:
                    latencies.append(arrived - time)
                continue
            is_kept = (conn, number, to) in history.kept and not history.may_lose_what_was_kept(time, receiver.node)
            if calm:
                why = "in calm"
            elif receiver.node == node:
                why = "on the same node"
            elif is_kept and min(receiver.down, sender.down) > time + 25:
                why = "that a node had kept"
            else:
                why = "during a fault"
            text = (
                f"message {number} of {sender.label} to {receiver.label}, sent {why} at {history.at(time)}, is missing"
            )
            missing[why].append(f"{text} ({history.near(time)})")
    for why in ("in calm", "on the same node", "that a node had kept"):
        report.add(missing[why])
    report.figures["missing during faults"] = len(missing["during a fault"])
    if latencies:
        latencies.sort()
        report.figures["p99 in calm"] = f"{1000 * latencies[int(len(latencies) * 0.99)]:.0f} ms"


def rooms_and_all(history, report):
    """What is sent to all and to rooms in calm arrives at every connection that is there, and a member."""
    missing = []
    for time, conn, number in history.sent["sent to all"]:
        if not history.is_calm(time) or history.connections[conn].down < time + history.transit(time):
            continue
        for receiver in history.connections.values():
            was_there = receiver.up <= time and receiver.down > time + PATIENCE
            if was_there and ("b", receiver.id, conn, number, "") not in history.messages:
                missing.append(f"broadcast {number} of {conn} at {history.at(time)} did not reach {receiver.label}")
    for time, conn, room, number in history.sent["sent to room"]:
        if not history.is_calm(time) or history.connections[conn].down < time + history.transit(time):
            continue
        for (member, of), changes in history.rooms.items():
            if of != room or member not in history.connections or history.connections[member].down < time + PATIENCE:
                continue
            before = [change for at, change in changes if at < time - 0.5]
            is_changing = any(time - 0.5 <= at <= time + AFTER for at, _ in changes)
            is_member = before and before[-1] == "enter" and not is_changing
            if is_member and ("r", member, conn, number, room) not in history.messages:
                label = history.connections[member].label
                missing.append(f"message {number} of {conn} to {room} at {history.at(time)} did not reach {label}")
    report.add(missing)


def published(history, report):
    """What a publisher was told that the broker has taken arrives, in calm; nothing else but a `WseError` is raised."""
    missing, faulty = [], 0
    for time, event, name, *what in history.published:
        if event == "exception":
            report.add([f"publisher {name} raised {what[0]}"])
        if event != "published":
            continue
        to, number, start, result = what
        if result.startswith("exception"):
            report.add([f"publisher {name} raised {result}"])
        for receiver in history.of_user[to] if result == "ok" else ():
            if receiver.up > start or receiver.down < max(start, time) + PATIENCE:
                continue
            if ("m", receiver.id, name, number, "") in history.messages:
                continue
            if history.is_calm(start) and history.is_calm(time):
                missing.append(f"message {number} of publisher {name} at {history.at(start)} missed {receiver.label}")
            else:
                faulty += 1
    report.add(missing)
    report.figures["published, missing during faults"] = faulty


def presence(history, report):
    """`joined` and `left` of a user alternate, and the last one is `left`, since all clients have gone."""
    lost = _claimed_by_the_dead(history)
    unknown = _known_only_to_a_lost_register(history)
    of_user = defaultdict(list)
    for entry in history.events_of("joined", "left"):
        of_user[entry["cid"]].append(entry)
    count = 0
    for cid, entries in of_user.items():
        for at in _wrong(entries):
            time = entries[at]["t"]
            around = entries[max(0, at - 3) : at + 3]
            story = " ".join(f"{e['event']}@{history.at(e['t'])}/{e['node']}" for e in around)
            text = f"joined and left of {cid} do not alternate: {story} ({history.near(time)})"
            claim = next((one for one in lost if one[0] == cid), None)
            story = next((one for one in unknown if one[0] == cid and one[1] < time), None)
            if claim is not None:
                lost.remove(claim)
                report.unavoidable.append(text)
            elif story is not None:
                unknown.remove(story)
                report.unavoidable.append(text)
            else:
                count += 1
                report.violations.append(text)
    report.figures["joined and left"] = sum(map(len, of_user.values()))


def _wrong(entries):
    """The places at which the same event fires twice in a row, and the last one if it is not `left`.

    Events of two nodes that follow each other shortly may be seen in another order.
    """
    order, wrong, before = [*range(len(entries))], [], "left"
    for at, place in enumerate(order):
        entry = entries[place]
        if entry["event"] == before:
            following = entries[order[at + 1]] if at + 1 < len(order) else None
            if following and following["event"] != before and following["t"] - entry["t"] < TOLERANCE:
                order[at + 1] = place
                entry = following
            else:
                wrong.append(place)
        before = entry["event"]
    return wrong if before == "left" else [*wrong, len(entries) - 1]


def _known_only_to_a_lost_register(history):
    """What nodes that were cut off could not know: the user, and when the register was lost.

    Others may have announced something about users with a connection at that node. For each of these, and each time
    that the register was lost while a node was cut off, one event may be repeated, at once or when the user leaves.
    """
    losses = [] if history.keeps_register else [fault for fault in history.faults if fault.kind in LOSSES]
    return [
        (cid, loss.began)
        for loss in losses
        for cut in history.faults
        if cut.kind in CUTS and cut.began < loss.healed and loss.began < cut.healed
        for cid, connections in history.of_user.items()
        if any(
            connection.node == cut.node
            and connection.up < max(cut.began, loss.began)
            and connection.down > min(cut.began, loss.began)
            for connection in connections
        )
    ]


def _claimed_by_the_dead(history):
    """Transitions that a killed node had claimed and not fired: by user and generation."""
    lost = []
    for killed_at, node in history.killed:
        open_claims = set()
        for entry in history.events:
            if entry["node"] != node or entry["t"] > killed_at:
                continue
            if entry["event"] == "start":
                open_claims.clear()
            elif entry["event"] == "claim…":
                open_claims |= {(user[1:], generation) for user, generation in entry["of"]}
            elif entry["event"] == "fired":
                open_claims -= {(user[1:], generation) for user, generation in entry["of"]}
        lost += open_claims
    return lost


def told(history):
    """A node that is cut off from its broker says so, to load balancers and on `when.error`."""
    for fault in history.faults:
        if fault.kind in ("part-recv", "part-pub", "cut"):
            nodes = [fault.node]
        elif fault.kind.startswith("engine"):
            nodes = [*history.readiness]
        else:
            continue
        is_alone = not any(
            other is not fault and other.began < fault.began + TOLD_WITHIN and other.healed > fault.began - AFTER
            for other in history.faults
        )
        if fault.ended - fault.began <= TOLD_WITHIN or not is_alone:
            continue  # too short; or the node may have told before, or not be there
        for node in nodes:
            where = f"{fault.kind} of {fault.ended - fault.began:.1f} s at {history.at(fault.began)}"
            statuses = [(t, status) for t, status in history.readiness[node] if t <= fault.began + TOLD_WITHIN]
            if statuses and statuses[-1][1] == 200:
                yield f"{where}: /readyz of {node} is still 200 after {TOLD_WITHIN} s"
            if not any(
                entry["node"] == node and fault.began - 1 <= entry["t"] <= fault.began + TOLD_WITHIN
                for entry in history.events_of("error")
                if "broker" in entry["code"]
            ):
                yield f"{where}: when.error of {node} was silent for {TOLD_WITHIN} s"


def calls(history, report):
    """Calls end in time, and in calm reach the devices that are there."""
    wrong = []
    for time, _, whom, mode, start, answer in history.asked:
        if answer.get("failed") == "wse.client.rp.timeout":
            wrong.append(f"a call of {whom} at {history.at(start)} never ended ({history.near(start)})")
        if answer.get("took", 0) > 4 + 3.5:
            wrong.append(f"a call of {whom} with a timeout of 4 s took {answer['took']:.1f} s at {history.at(start)}")
        if not whom.startswith("stable") or not history.is_calm(start, before=9) or not history.is_calm(time):
            continue
        there = [c for c in history.of_user[whom] if c.up < start - 0.5 and c.down > time + 0.5]
        # A node that sleeps notices only afterwards that a connection has ended.
        slept = [f.began for f in history.faults if f.kind in SLEEPS and f.began < time and f.healed + 1 > start]
        since = min([start - 0.5, *slept])
        some = [c for c in history.of_user[whom] if c.up < time + 0.5 and c.down > since]
        if len(there) != len(some) or len(there) != 2 or "failed" in answer:
            continue  # they come and go; or the connection that asks has ended
        if answer.get("error") == "wse.client.rp.timeout" and any(_has_slept(history, c.node, time) for c in there):
            continue  # a node that sleeps for longer than the timeout answers for none of its devices
        text = f"a call ({mode}) of {whom} at {history.at(start)} in calm: {answer}"
        newest = max(there, key=lambda connection: connection.up)
        if (
            "error" in answer
            or (mode == "all" and set(answer["answer"]) != {c.label for c in there})
            or (
                mode == "any"
                and answer["answer"] != newest.label
                # The order of devices is the register's: clients that connect within a second may be welcomed in
                # another, and devices whose node was taken for dead are the oldest.
                and abs(there[0].up - there[1].up) > 1
                and not any(_was_taken_for_dead(history, connection, start) for connection in there)
            )
        ):
            wrong.append(text)
    report.add(wrong)
    report.figures["calls"] = len(history.asked)


def _was_taken_for_dead(history, connection, time):
    """Whether the node may have lost its lease since that connection, as by a fault that lasted long enough."""
    return any(
        fault.node == connection.node
        and fault.kind in (*CUTS, *SLEEPS)
        and connection.up < fault.ended
        and fault.began < time
        and fault.ended - fault.began > LEASE - 1
        for fault in history.faults
    )


def losses(history, report):
    """What nodes lost they have counted and reported."""
    report.figures["reported as lost"] = sum(entry["lost"] for entry in history.events_of("error"))


def errors(history, directory, report):
    """Nothing is raised where nobody expects it."""
    pattern = r"(?m)^(?:\w+\.)*\w*(?:Error|Exception)\b.*|.*never retrieved.*|.*was destroyed.*|.*never awaited.*"
    for path in sorted(directory.glob("*.err")):
        found = sorted(set(re.findall(pattern, path.read_text(errors="replace"))))
        report.violations += [f"{path.name}: {text[:300]}" for text in found[:MAX_SHOWN]]
    unexpected, slept = Counter(), 0
    for entry in history.events_of("error"):
        if entry["code"] == "wse.server.handler-cancelled" and _has_slept(history, entry["node"], entry["t"]):
            slept += 1
        elif entry["code"] not in EXPECTED_ERRORS:
            unexpected[f"{entry['code']} {entry['message']} {entry['cause']}"] += 1
    for what, count in unexpected.items():
        report.violations.append(f"when.error told {count} times: {what[:300]}")
    for what, count in Counter(history.exceptions).items():
        report.violations.append(f"a client raised {count} times: {what}")
    report.figures["handlers that slept too long"] = slept


def _has_slept(history, node, time):
    """Whether the node has just slept: the time of its handlers has passed as well."""
    return any(
        fault.node == node and fault.kind in SLEEPS and fault.began < time < fault.healed + 1
        for fault in history.faults
    )
