"""The memory that a server's process takes for sessions whose clients do not confirm, or are away."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from support.core import FakeRequest, ServerSide
from support.counts import resident, trim
from wse.core.resume import Resume

KIB = 1024
MIB = 1024 * KIB
HI = '["~wse:hi",{"identity":"u%d","ext":{"resume":{}}},null]'


class Discarding:
    """A link that discards everything."""

    pings = False
    buffered = 0
    remote_addr = ""

    def __init__(self):
        self.receiver = None

    def attach(self, session):
        self.receiver = session

    def write(self, data): ...

    write_utf8 = write_shared = write

    def close(self, code, reason): ...

    def abort(self): ...


class Server(ServerSide):
    def __init__(self, **bounds):
        super().__init__(conns_per_user=1, resume=Resume(**bounds))

    def _report(self, error, session): ...

    def join(self, number=0):
        """A client whose session can be resumed; its link."""
        link = Discarding()
        self.hub.open(link, FakeRequest(), self.endpoint.protocols[0]).receive(HI % number)
        self.scheduler.run()
        assert link.receiver.session.valid
        return link

    @property
    def away(self):
        return len(self.hub.resumption.detached)


def taken():
    """The resident memory of this process, without what the C library keeps for later use."""
    gc.collect()
    trim()
    return resident()


# Each of these runs in a process of its own, whose memory nothing else has used.


def served(confirms, total):
    """Bytes that the process has grown by while one client was sent so many."""
    side = Server()
    link = side.join()
    conn = link.receiver.session.conn
    before = taken()
    for number in range(total // (64 * KIB)):
        conn.send("news", str(number).ljust(64 * KIB))
        if confirms and number % 16 == 0:
            link.receiver.receive(f'["~wse:ack",{link.receiver.out},null]')
    assert not link.receiver.session.ended
    return taken() - before


def away(count, messages, retained):
    """Bytes that the process has grown by when so many clients are away, for whom messages of 4 KiB wait."""
    side = Server(retained=retained)
    before = taken()
    for number in range(count):
        link = side.join(number)
        conn = link.receiver.session.conn
        link.receiver.closed(1006, "")
        for part in range(messages):
            conn.send("news", f"{number} {part}".ljust(4 * KIB))
    assert side.hub.resumption.retention.used <= retained
    return side.away, taken() - before


def measured(function, *args):
    command = [sys.executable, __file__, function.__name__, json.dumps(args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_client_that_never_confirms_a_gibibyte_costs_no_more_than_a_mebibyte():
    assert measured(served, False, 1024 * MIB) < measured(served, True, 1024 * MIB) + MIB


def test_ten_thousand_clients_that_are_away_take_little_more_than_what_waits_for_them():
    left, grown = measured(away, 10_000, 3, 128 * MIB)
    assert left == 10_000
    assert grown < (128 + 30) * MIB


def test_clients_that_are_away_keep_no_more_than_the_server_allows():
    """48 KiB wait for each, which together is far above the bound; those that have ended leave gaps in the memory."""
    left, grown = measured(away, 10_000, 12, 128 * MIB)
    assert 1000 < left < 10_000
    assert grown < (128 + 60) * MIB


def test_an_idle_client_that_is_away_costs_a_few_kibibytes():
    left, grown = measured(away, 10_000, 0, 128 * MIB)
    assert left == 10_000
    assert grown < 10_000 * 8 * KIB


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
