"""Finds out whether a message to a user is got on other nodes: `send(..., fallback=True)`.

The node that has sent it asks the nodes that hold a device of the user, on the user's topic, so that the question
comes after the message. Each answers once it knows. The register tells which nodes to wait for. One that dies, or whose
last device of the user ends, is not waited for.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from wse.core.cluster.envelope import USER, Reached, Watched
from wse.core.names import decode_name, encode_name
from wse.core.ports.broker import Away
from wse.errors import WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio

    from wse.core.cluster.bus import Bus
    from wse.core.hub.fallback import Watch
    from wse.core.hub.hub import Hub

LOOK_EVERY: Final = 5.0
"""Seconds between two looks at the register, while the answer of a node is missing."""

PATIENCE: Final = 60.0
"""Seconds, beside those for which a session waits for its client, after which a message that a node has not answered
for counts as undelivered. The device may have come to that node between the message and the look at the register."""


class Question:
    """A message that other nodes are asked about.

    Attributes:
        watch: The message.
        silent: The nodes whose answer is missing; `None` before the register has said which there are.
        negative: Nodes on which nobody has got it.
        changed: Done when there is an answer.
    """

    __slots__ = ("changed", "negative", "silent", "watch")

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.silent: set[str] | None = None
        self.negative: set[str] = set()
        self.changed: asyncio.Future[None] | None = None


class Watching:
    """The questions of one node, and its answers to those of others.

    Args:
        bus: The connection to the other nodes.
        hub: The connections of this node.
    """

    def __init__(self, bus: Bus, hub: Hub) -> None:
        self._bus = bus
        self._hub = hub
        self._scheduler = hub.endpoint.scheduler
        self._number = 0
        self._questions: dict[int, Question] = {}

    def watch(self, watch: Watch) -> None:
        """Find out whether anybody on another node gets all that the user has been sent until now."""
        self._number = number = self._number + 1
        question = self._questions[number] = Question(watch)
        self._bus.publish(USER + encode_name(watch.cid), Watched(self._bus.node, number))
        self._scheduler.spawn(self._find_out(number, question))

    async def _find_out(self, number: int, question: Question) -> None:
        resumption = self._hub.resumption
        deadline = self._scheduler.time() + PATIENCE + (0.0 if resumption is None else resumption.longest)
        user = encode_name(question.watch.cid)
        try:
            while not question.watch.is_reached and self._scheduler.time() < deadline:
                try:
                    devices = await self._bus.broker.devices(user)
                except WseError:  # the broker is away, and perhaps the message is not there yet
                    pass
                else:
                    holders = {device.node for device in devices if device.away is not Away.GONE} - {self._bus.node}
                    # What was sent before a device came has not reached it.
                    question.silent = holders if question.silent is None else question.silent & holders
                    if question.silent <= question.negative:
                        break
                await self._wait(question)
        finally:
            del self._questions[number]
            self._hub.fallbacks.settle(question.watch, False)

    async def _wait(self, question: Question) -> None:
        """Return when there is an answer, or after a while."""
        question.changed = changed = self._scheduler.create_future()
        timer = self._scheduler.call_later(LOOK_EVERY, wake, changed)
        try:
            await changed
        finally:
            timer.cancel()
            question.changed = None

    # Between the nodes.

    def asked(self, topic: str, message: Watched) -> None:
        """Another node asks."""
        sessions = self._hub.sessions_of(decode_name(topic.removeprefix(USER)))
        self._hub.fallbacks.follow(sessions, partial(self._answer, message.origin, message.number))

    def _answer(self, node: str, number: int, is_reached: bool) -> None:
        self._bus.send_to(node, Reached(self._bus.node, number, is_reached))

    def answered(self, message: Reached) -> None:
        """Another node answers."""
        question = self._questions.get(message.number)
        if question is None:
            return
        if message.reached:
            self._hub.fallbacks.settle(question.watch, True)
        else:
            question.negative.add(message.origin)
        if question.changed is not None:
            wake(question.changed)
