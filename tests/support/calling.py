"""A server whose peer calls and is called with the extension `calls`, and sends anything; with the invariants.

The fuzz target `calls` runs it.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from support.core import ServerSide
from support.stories import check_link
from support.streams import OFFER, nothing_is_left
from wse import ErrorCode, Limits, WseError, current_call
from wse.core.session.serving import ServedCall

LIMITS = Limits(handler_linger=2.0, streams=3, incoming_calls=6, handlers=8, outgoing_calls=5, stream_window=20)
OF_CALLER = ["cancel", "more", "put", "put", "end"]
OF_CALLEE = ["item", "item", "item", "want", "progress", "response", "response-err"]
STREAMS = ["count", "plain", "raises", "raises-finally", "stubborn", "bad-item", "yields-finally", "waits"]
UPLOADS = ["take", "ignore"]
PROCEDURES = [*STREAMS, *UPLOADS, "both", "job", "late", "echo", "asks", "unknown"]
STAMPS = [1, 2, 3, 4, 5, "s", 1.0, True, [1], {"a": 1}, None, 0, 10**30]
COUNTS = [1, 2, 5, 16, 32, 256, 0, -1, -(2**31), 2**31, 2**63, 10**400, 1.5, True, None, "9", [], {}]
SECONDS = [0, 0.5, 1, 3, 100, -1, 10**400, float("inf"), float("nan"), True, "1", None, []]
PAYLOADS = [0, 1, 3, 50, 1000, None, "x", [1]]
PASSES = [0.1, 0.5, 1, 2.5, 6]


class AppError(Exception):
    """What procedures of this application raise."""


def is_known(cause):
    """Whether the application is the cause of a report, and not a fault of ours."""
    if isinstance(cause, RuntimeError):
        return "ignored GeneratorExit" in str(cause)
    if isinstance(cause, TypeError):
        return "Encoding objects of type object" in str(cause) or "object() is not" in str(cause)
    return cause is None or isinstance(cause, AppError | WseError)


class CallingStory:
    """One connection, and another one when it has ended. What is known of it is checked after each step."""

    def __init__(self, protocol):
        self.side = ServerSide(limits=LIMITS, timeout=5, protocols=(protocol,))
        self.protocol = protocol
        self.begun = self.ended = 0
        self.waiting = []
        self.tasks = []
        self.streams = []
        self.sessions = []
        self.is_over = False
        register = self.side.endpoint.procedures.register
        for name in PROCEDURES[:-1]:
            upload = name in (*UPLOADS, "both")
            register(name, getattr(self, name.replace("-", "_")), upload=upload, cancel=name in ("late", "take"))
        self.open()

    def open(self):
        self.peer = self.side.open(protocol=self.protocol)
        self.peer.say(self.protocol.internal_types.hi, {"identity": "ann", "ext": OFFER})
        self.side.scheduler.run()
        self.session = self.peer.session
        self.sessions.append(self.session)
        assert self.session.terms is not None
        self.last = 0  # of the stamps of the peer
        self.credit = Counter()  # by stamp, what the peer has granted
        self.items = Counter()
        self.calls = Counter()
        self.answers = Counter()

    # The application's procedures.

    async def wait(self):
        future = self.side.scheduler.create_future()
        self.waiting.append(future)
        await future

    async def count(self, conn, payload):
        self.begun += 1
        try:
            for n in range(payload if isinstance(payload, int) else 10):
                yield n
                if n % 7 == 6:
                    await self.wait()
        finally:
            self.ended += 1

    def plain(self, conn, payload):
        yield from range(50)

    async def raises(self, conn, payload):
        yield 1
        raise AppError

    async def raises_finally(self, conn, payload):
        try:
            while True:
                yield 1
        finally:
            raise AppError

    async def stubborn(self, conn, payload):
        for _ in range(3):
            try:
                yield 1
                await self.wait()
            except asyncio.CancelledError:
                pass

    async def bad_item(self, conn, payload):
        yield 1
        yield object()

    async def yields_finally(self, conn, payload):
        try:
            yield 1
        finally:
            yield 2

    async def waits(self, conn, payload):
        self.begun += 1
        try:
            await self.wait()
            yield 1
        finally:
            self.ended += 1

    async def take(self, conn, payload, items):
        async for _ in items:
            current_call().progress(payload)
        return "taken"

    async def ignore(self, conn, payload, items):
        await self.wait()

    async def both(self, conn, payload, items):
        async for item in items:
            yield item

    async def job(self, conn, payload):
        for n in range(3):
            current_call().progress(n)
            await self.wait()
        return current_call().cancelled

    async def late(self, conn, payload):
        await self.wait()
        return payload

    def echo(self, conn, payload):
        return payload

    async def asks(self, conn, payload):
        return await conn.call("ask", payload)

    # Steps.

    def served(self, back):
        """The stamp of a recent call of the peer."""
        return max(self.last - back % 3, 1)

    def asked(self, back):
        """The stamp of a recent call of the application."""
        calls = self.session._calls
        waiting = [] if calls is None else list(calls.waiting)
        return waiting[-1 - back % min(3, len(waiting))] if waiting else 1

    def frame(self, kind, payload, stamp):
        """The peer sends a frame of the extension, or an answer."""
        protocol = self.peer.protocol
        types = protocol.extensions
        internal = protocol.internal_types
        type_ = {"response": internal.response, "response-err": internal.response_error}.get(kind)
        if type_ is None:
            type_ = getattr(types, kind)
        if kind == "more" and isinstance(payload, int) and not isinstance(payload, bool) and payload > 0:
            self.credit[repr(stamp)] += payload
        self.say(type_, payload, stamp)

    def call(self, name, payload, options, stamp=None):
        if stamp is None:
            self.last += 1
            stamp = self.last
        credit = options.get("n")
        if isinstance(credit, int) and not isinstance(credit, bool) and credit > 0:
            self.credit[repr(stamp)] += credit
        self.say(self.peer.protocol.extensions.call, [name, payload, options], stamp)

    def say(self, type_, payload, stamp):
        try:
            data = self.peer.protocol.pack(type_, payload, stamp)
        except Exception:
            return
        self.raw(data)

    def raw(self, data):
        """The peer sends a message, which may be no message at all."""
        try:
            _, _, stamp = self.peer.protocol.unpack(data)
        except Exception:
            pass
        else:
            self.calls[repr(stamp)] += 1
        self.peer.receiver.receive(data)
        self.side.scheduler.run()

    def open_stream(self, window, upload):
        """The application takes a stream of the peer."""
        stream = self.peer.conn.stream("tail", window=window, upload=range(30) if upload else None, timeout=2)
        self.streams.append(stream)
        self.tasks.append(self.side.scheduler.start(self.take_some(stream, 3)))

    def read_stream(self, count):
        if self.streams:
            self.tasks.append(self.side.scheduler.start(self.take_some(self.streams[-1], count)))

    async def take_some(self, stream, count):
        try:
            for _ in range(count):
                await anext(stream)
        except (StopAsyncIteration, RuntimeError):  # it is over, or another task waits
            pass

    def leave_stream(self):
        if self.streams:
            self.tasks.append(self.side.scheduler.start(self.streams.pop().aclose()))

    def start_call(self, timeout, progress, upload):
        listener = self.heard_progress if progress else None
        items = range(30) if upload else None
        call = self.peer.conn.call("ask", 1, timeout=timeout, on_progress=listener, upload=items)
        self.tasks.append(self.side.scheduler.start(call))

    async def heard_progress(self, value):
        await self.wait()

    def cancel(self):
        if self.tasks:
            self.tasks[-1].cancel()
            self.side.scheduler.run()

    def settle(self):
        while self.waiting:
            future = self.waiting.pop()
            if not future.done():
                future.set_result(None)
            self.side.scheduler.run()

    def vanish(self):
        self.peer.vanish()
        self.side.scheduler.run()

    # What must hold.

    def check(self):
        session, protocol = self.session, self.peer.protocol
        check_link(self.peer)
        types, internal = protocol.extensions, protocol.internal_types
        for type_, _, stamp in self.peer.heard:
            if type_ == types.item:
                self.items[repr(stamp)] += 1
                assert self.items[repr(stamp)] <= self.credit[repr(stamp)], "an item without credit"
            elif type_ in (internal.response, internal.response_error):
                self.answers[repr(stamp)] += 1
                assert self.answers[repr(stamp)] <= self.calls[repr(stamp)], "a call is answered once"
        serving, asking = session._serving, session._asking
        if serving is not None:
            assert serving.streams <= LIMITS.streams
            assert session._running_calls <= LIMITS.incoming_calls
            for call in serving.calls.values():
                if isinstance(call, ServedCall):
                    assert call.inflow is None or len(call.inflow) <= 32
                    assert call.outflow is None or 0 <= call.outflow.credit <= LIMITS.stream_window
        if asking is not None:
            assert len(asking.calls) <= LIMITS.outgoing_calls
            for asked in asking.calls.values():
                assert asked.inflow is None or len(asked.inflow) <= asked.inflow.window <= LIMITS.stream_window
                assert asked.outflow is None or 0 <= asked.outflow.credit <= LIMITS.stream_window
        assert session.running_handlers <= LIMITS.handlers
        if session.ended and not self.is_over:
            self.vanish()
            self.open()
        for error, _ in self.side.errors:
            assert type(error) is WseError
            if (
                error.code != ErrorCode.MSG_PROCESSING_ERROR
            ):  # also bytes that are no message, whatever the decoder says
                assert is_known(error.__cause__), repr(error.__cause__)
        self.side.errors.clear()

    def finish(self):
        self.is_over = True
        self.vanish()
        self.check()
        for _ in range(5):
            self.side.scheduler.advance(100)
            self.settle()
        self.check()
        self.streams.clear()
        assert self.begun == self.ended, "a generator whose finally has not run"
        assert all(map(nothing_is_left, self.sessions))
        assert self.side.scheduler.timers == []
        assert self.side.scheduler.unfinished == []
        for task in self.tasks:
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), WseError)
        assert (self.side.hub.identities, self.side.hub.sockets.open) == ({}, set())
        self.side.scheduler.tasks.clear()
        self.tasks.clear()
        assert self.side.scheduler.unheard == []
