"""The presence of one node's devices in the cluster: they join the register, leave it, and are registered again.

`connected` and `disconnected` concern one node and fire at once. `joined` and `left` concern the cluster: of all nodes,
the one whose device the register calls `first` fires `joined`, and the one whose device it calls `last` fires `left`.
While the register cannot be reached devices still come and go; the register follows when it is back, and so do `joined`
and `left`.

A node whose lease had run out registers all its devices anew, for one of two reasons:

* The node was out of reach, and other nodes have removed its devices. They have fired `left` for users without another
  device, and tell the node for which users, so `joined` fires anew for just these.
* The register was lost, because the engine was restarted and keeps nothing. No node has fired `left`, so `joined`
  fires for no user that had been registered before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.cluster.deferred import DeferredEvents
from wse.core.cluster.envelope import USER, Check, Displaced, Reaped, decode_name, encode_name, in_parts
from wse.core.hub.connection import WseIdentity
from wse.core.ports.broker import Device
from wse.errors import CloseReason, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.packed import Packed
    from wse.core.ports.broker import Joined
    from wse.core.ports.scheduling import Scheduler
    from wse.types import ClientId

WIDTH = 32
"""Devices that are registered at a time, when many are."""

REMEMBERED = 16
"""Dead nodes whose users this node remembers, in case the node turns out to have slept."""

NO_LIMIT = 1 << 30


class _Joining:
    """The phase between acceptance and welcome, while the register is asked; what the client sends is ignored."""

    ignores_input = True
    max_size = 0

    def message(self, type: Any, payload: Any, stamp: Any) -> None: ...

    def stop(self) -> None: ...


JOINING = _Joining()


class Registration:
    """A device of this node, from its acceptance until the register has forgotten it."""

    __slots__ = ("announced", "conn", "device", "displaced", "end", "known", "waits")

    def __init__(self, device: Device, conn: WseConnection) -> None:
        self.device = device
        self.conn = conn
        self.known = False  # it is in the register
        self.announced = False  # it has been, so somebody has fired `joined`
        self.displaced = False  # the register has put a newer device in its place
        self.waits = False  # it has ended, and was registered again only to leave
        self.end: tuple[WseIdentity, int, str] | None = None  # the connection has ended, and `left` may be due


class Presence:
    """This node's devices, and the users of dead nodes that it has removed."""

    def __init__(self, bus: Bus, hub: Hub, rpc: NodeRpc, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._hub = hub
        self._rpc = rpc
        self._clock = clock
        self._broker = bus.broker
        self._scheduler = hub.endpoint.scheduler
        self.deferred = DeferredEvents(bus, hub, clock)
        self._registrations: dict[str, Registration] = {}
        self._joining: dict[str, list[Registration]] = {}  # by user, those between acceptance and welcome
        self._unsettled: set[Registration] = (
            set()
        )  # not in the register, or still there though the connection has ended
        self._reaped: dict[str, set[str]] = {}  # by dead node, the users for which this node has fired `left`
        self._left: set[str] = set()  # users of this node for which others have fired `left` while it slept
        self._pending_joined: set[str] = set()  # users whose `joined` waits until `settle`
        self._silent: set[str] = set()  # users for which no node seems to have fired `left`
        self._lease = 0  # counts the leases: an answer of the register under one need not hold under the next
        self._asking = False
        self.must_ask = False  # the question whether other nodes considered this one dead has failed
        self._settling = False
        self._emptied: asyncio.Future[None] | None = None

    # A connection comes and goes.

    def admit(self, session: ServerSession, cid: ClientId, welcome: Packed) -> None:
        """Register a connection, then welcome it.

        Raises:
            TypeError, ValueError: A user of a cluster cannot have this `cid`.
        """
        if not self._bus.is_open:
            session.close(1012, CloseReason.BY_SERVER)
            return
        try:
            user = encode_name(cid)
        except (TypeError, ValueError):
            session.close(1000, CloseReason.NOT_AUTHORIZED)
            raise
        conn = session.conn
        registration = Registration(Device(user, conn.conn_id, self._bus.node, self._clock()), conn)
        self._registrations[conn.conn_id] = registration
        session.enter(JOINING)
        others = self._joining.setdefault(user, [])
        # The subscription may not be in force yet if another device of the user is joining: it may just have been made.
        is_new = self._bus.want(USER + user) or bool(others)
        others.append(registration)
        self._scheduler.spawn(self._join(registration, cid, welcome, is_new))

    async def _join(self, registration: Registration, cid: ClientId, welcome: Packed, subscribed: bool) -> None:
        joined: Joined | None = None
        others = self._others(cid)
        lease = self._lease
        try:
            joined = await self._broker.join(registration.device, self._hub.conns_per_user)
            registration.device = joined.device
            registration.announced = True
            registration.known = lease == self._lease
            if not registration.known:
                self._unsettled.add(registration)
            if subscribed:
                await self._broker.flush()  # messages that are sent after the welcome must arrive
        except WseError:
            self._unsettled.add(registration)  # the broker is away: the device is registered when it is back
        joining = self._joining.get(registration.device.user, [])
        if registration in joining:  # else this node has left the cluster meanwhile
            joining.remove(registration)
            if not joining:
                del self._joining[registration.device.user]
        conn = registration.conn
        session = conn._session
        is_first = joined is not None and joined.first
        forgotten = [other for other in others if other.end is None and not other.displaced]
        if is_first and forgotten:
            # The register was lost, or this node was reaped: `settle` finds out whether `joined` is to fire.
            self._pending_joined.add(registration.device.user)
            self._unsettled.update(forgotten)
            is_first = False
        is_deferred = is_first and self.deferred.covers(registration.device.user)
        if session.ended or registration.displaced:
            # The device was in the register for a moment, so its user was present for a moment.
            identity = WseIdentity(self._hub, cid, conn.meta)
            if is_deferred:
                self.deferred.defer_joined(registration.device, identity)
            elif is_first:
                self._hub.joined._emit(identity, conn.meta)
            self._displace(joined)
            session.close(1000, CloseReason.CLIENTS_CONCURRENCY)
            self.leave(conn, identity, 1006, "")
            return
        self._hub.add(conn, cid)
        if joined is None:
            self._hub.push_out(conn)
        else:
            self._displace(joined)
        if is_deferred and conn.client is not None:
            self.deferred.defer_joined(registration.device, conn.client)
        self._hub.welcome(session, welcome, is_first and not is_deferred)

    def drop_joining(self, cid: ClientId, reason: str, code: int) -> None:
        """Close the user's devices that have no welcome yet."""
        for registration in tuple(self._joining.get(encode_name(cid), ())):
            registration.conn._session.close(code, reason)

    def _others(self, cid: ClientId) -> list[Registration]:
        """The user's devices on this node that are in the register, as far as is known."""
        identity = self._hub.identities.get(cid)
        registrations = [] if identity is None else [self._registrations[conn_id] for conn_id in identity.conns]
        return [registration for registration in registrations if registration.announced]

    def leave(self, conn: WseConnection, identity: WseIdentity, code: int, reason: str) -> None:
        """Take a device out of the register: its connection has ended."""
        registration = self._registrations.get(conn.conn_id)
        if registration is None:  # this node has left the cluster already
            return
        self._bus.unwant(USER + registration.device.user)
        if registration.displaced:
            self._forget(registration)
            return
        registration.end = identity, code, reason
        self._unsettled.add(registration)
        if registration.known:
            self._scheduler.spawn(self._leave_or_wait(registration))

    async def _leave_or_wait(self, registration: Registration) -> None:
        try:
            await self._leave(registration)
        except WseError:
            return  # `settle` tries again

    async def _leave(self, registration: Registration) -> None:
        assert registration.end is not None
        is_last = await self._broker.leave(registration.device)
        if is_last and self.deferred.covers(registration.device.user):
            self.deferred.defer_left(registration.device.user, registration.end)
        elif is_last:
            self._hub.left._emit(*registration.end)
        self._forget(registration)

    def displaced(self, conn_id: str) -> None:
        """Close a device: the register has put a newer one in its place."""
        registration = self._registrations.get(conn_id)
        if registration is not None and not registration.displaced:
            registration.displaced = True
            if registration.end is not None:
                self._forget(registration)
            elif registration.conn.client is not None:  # else it waits for its welcome, and `_join` closes it
                registration.conn.drop(CloseReason.CLIENTS_CONCURRENCY)

    def check(self, user: str) -> None:
        """See whether the user's devices are still in the register: they may have been displaced unnoticed."""
        identity = self._hub.identities.get(decode_name(user))
        if identity is not None:
            self._unsettled.update(self._registrations[conn_id] for conn_id in identity.conns)

    def _displace(self, joined: Joined | None) -> None:
        for device in () if joined is None else joined.displaced:
            if device.node == self._bus.node:
                self.displaced(device.conn_id)
            else:
                self._bus.send_to(device.node, Displaced(self._bus.node, device.conn_id))

    def _forget(self, registration: Registration) -> None:
        self._registrations.pop(registration.device.conn_id, None)
        self._unsettled.discard(registration)
        if not self._registrations:
            self._done()

    # The register comes back, and may have forgotten this node.

    def check_all(self) -> None:
        """See whether all devices are still in the register: messages about them may have been lost."""
        self._unsettled.update(self._registrations.values())

    async def lost(self) -> None:
        """Prepare to register all devices anew: the lease had run out, so they are or will be out of the register.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        self._lease += 1
        self.deferred.lease_lost()
        for registration in self._registrations.values():
            registration.known = False
        self.check_all()
        self._asking = self.must_ask = True
        try:
            answers = await self._rpc.query("reaped", self._bus.node)
            self.must_ask = False
        finally:
            self._asking = False
        told = [users for users in answers if users is not None]
        for users in told:
            self.reaped_by_another(users)
        if told:
            for registration in [
                registration
                for registration in self._registrations.values()
                if registration.end is not None and registration.announced
            ]:
                self._forget(registration)

    async def settle(self, calm: bool) -> None:
        """Register devices that are not registered, and take out those that have ended.

        Args:
            calm: Whether every living node has had the time to register its devices, in case the register was lost.
                Before, it is unknown whether a device was its user's last.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        if self._settling:
            return
        here = {registration.device.user for registration in self._registrations.values() if registration.announced}
        if calm:
            self.deferred.calm()

        async def settle(registration: Registration) -> None:
            if self._asking:  # the lease has run out meanwhile
                return
            if registration.end is not None:
                if registration.announced and not registration.known:
                    # All nodes do so and wait, so that exactly one of them takes out the user's last device.
                    joined = await self._broker.join(registration.device, NO_LIMIT, fresh=False)
                    registration.known = registration.waits = True
                    if not joined.first and not joined.again:
                        self.deferred.confirm(registration.device.user)
                if calm or not registration.waits:
                    await self._leave(registration)
            elif registration.conn.client is not None:
                await self._join_again(registration, here)

        self._settling = True
        try:
            await each(self._scheduler, self.deferred.users, self.deferred.resolve)
            await each(self._scheduler, tuple(self._unsettled), settle)
        finally:
            self._settling = False
        if not self._unsettled:
            self._left.clear()
            self._pending_joined.clear()
        if calm:
            self._silent.clear()

    async def _join_again(self, registration: Registration, here: set[str]) -> None:
        lease = self._lease
        was_announced = registration.announced
        joined = await self._broker.join(registration.device, self._hub.conns_per_user, fresh=False)
        user = registration.device.user
        if lease != self._lease:  # the device must join once more
            if joined.first:
                self._pending_joined.add(user)
            return
        registration.device = joined.device
        registration.known = registration.announced = True
        self._unsettled.discard(registration)
        is_answer_to_first_join = joined.again and not was_announced  # the answer to an earlier join was lost
        is_told_first = joined.first and not (joined.again and was_announced)  # for the first time
        is_first = is_told_first or user in self._pending_joined
        has_left = user in self._left
        is_news = user not in here or has_left
        self._pending_joined.discard(user)
        self._left.discard(user)
        identity = registration.conn.client
        is_uncertain = self.deferred.covers(user) and not has_left
        if is_uncertain and is_news and not was_announced and identity is not None:
            self.deferred.defer_joined(
                registration.device, identity
            )  # a device that came later may have been registered earlier
        elif is_first and is_news and identity is not None:
            self._hub.joined._emit(identity, identity.meta)
        elif is_first:
            self._silent.add(user)
        self._displace(joined)
        if was_announced and not joined.first and not joined.again:
            self.deferred.confirm(user)
        if is_answer_to_first_join:  # the names of the displaced devices were lost with it
            self._bus.publish(USER + user, Check(self._bus.node))
            self.check(user)
        if registration.end is not None:  # it ended meanwhile
            self._unsettled.add(registration)
            await self._leave(registration)

    # Dead nodes.

    async def reap(self) -> None:
        """Remove the devices of dead nodes from the register.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        by_node: dict[str, list[str]] = {}
        for gone in await self._broker.reap():
            device = gone.device
            users = by_node.setdefault(device.node, [])
            if gone.last:
                users.append(device.user)
                self._hub.left._emit(WseIdentity(self._hub, decode_name(device.user), {}), 1006, "")
        for node, users in by_node.items():
            self._reaped.setdefault(node, set()).update(users)
            if len(self._reaped) > REMEMBERED:
                del self._reaped[next(iter(self._reaped))]
            for part in in_parts(users):
                self._bus.send_to(node, Reaped(self._bus.node, part))  # the node may be awake again already

    def reaped_by_another(self, users: Iterable[str]) -> None:
        """Note that another node considered this one dead, and has fired `left` for these users."""
        for user in users:
            identity = self._hub.identities.get(decode_name(user)) if user in self._silent else None
            if identity is None:
                self._left.add(user)
            else:
                self._silent.discard(user)
                self._hub.joined._emit(identity, identity.meta)

    def reaped(self, node: str) -> list[str] | None:
        """The users of a dead node for which this node has fired `left`; None if it has not removed that node."""
        users = self._reaped.get(node)
        return None if users is None else list(users)

    # The end.

    async def close(self, timeout: float) -> None:
        """Wait until all devices are out of the register, but no longer than `timeout` seconds."""
        if not self._registrations and not self.deferred.users:
            return
        self._emptied = self._scheduler.create_future()
        timer = self._scheduler.call_later(timeout, self._done)
        self._scheduler.spawn(self._settle_last())
        try:
            await self._emptied
        finally:
            timer.cancel()
            self._emptied = None

    async def _settle_last(self) -> None:
        try:
            await self.settle(calm=True)
        except WseError:
            self._done()
        if not self._registrations:
            self._done()

    def reset(self) -> None:
        """Forget everything: this node has left the cluster, and others remove the devices that are left."""
        for forgotten in (
            self._registrations,
            self._joining,
            self._unsettled,
            self._reaped,
            self._left,
            self._pending_joined,
            self._silent,
        ):
            forgotten.clear()
        self.must_ask = False
        self.deferred.reset()

    def _done(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)


async def each(scheduler: Scheduler, items: Iterable[Any], do: Callable[[Any], Awaitable[None]]) -> None:
    """Call `do` with every item, `WIDTH` of them at a time, and stop at the first error.

    Raises:
        WseError: The first error that `do` raised.
    """
    iterator = iter(items)
    done = scheduler.create_future()
    running = WIDTH

    async def work() -> None:
        nonlocal running
        try:
            for item in iterator:
                await do(item)
                if done.done():
                    return
        except WseError as exc:
            if not done.done():
                done.set_exception(exc)
        finally:
            running -= 1
            if not running and not done.done():
                done.set_result(None)

    for _ in range(WIDTH):
        scheduler.spawn(work())
    await done
