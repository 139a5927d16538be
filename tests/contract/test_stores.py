"""The guarantees of `wse.core.ports.store.Store`, tested with every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from support.brokers import ENGINES, be_patient, forget_boxes, run_cluster, unavailable, until
from wse import WseError
from wse.brokers.memory_store import MemoryStore
from wse.brokers.sqlite_store import SqliteStore
from wse.core.ports.store import Bounds, Cursor, Page, Span

BOUNDS = Bounds(messages=100, bytes=1 << 20, ttl=3600, devices=3)


@pytest.fixture(params=["memory", "sqlite", *ENGINES])
async def stores(request, monkeypatch, tmp_path):
    """Two stores with the same content, as two nodes have them."""
    be_patient(monkeypatch)
    if request.param == "memory":
        store = MemoryStore()
        yield store, store
    elif request.param == "sqlite":
        store = SqliteStore(str(tmp_path / "inbox.db"))
        await store.open()
        yield store, store
        await store.close()
    else:
        async for cluster in run_cluster(request.param, request):
            one, two = await cluster.nodes(2)
            yield one.broker.store, two.broker.store


@pytest.fixture
def store(stores):
    return stores[0]


@pytest.fixture
def bounds_bytes(store):
    """Whether the store bounds the bytes of a box."""
    return not type(store).__name__.startswith("Nats")


async def keep(store, *messages, box="u.ada", bounds=BOUNDS):
    return [(await store.keep(box, message, bounds))[0].number for message in messages]


def numbers(page):
    return [record.number for record in page.records]


async def test_a_box_numbers_its_messages_from_one_without_gaps(stores):
    one, two = stores
    assert await keep(one, b"a", b"b") == [1, 2]
    assert await keep(two, b"c") == [3]
    assert await keep(one, b"d") == [4]
    assert await keep(one, b"other", box="r.room") == [1]
    page = await two.read("u.ada", 0, 10)
    assert [(record.number, record.data) for record in page.records] == [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")]
    assert page.span == Span(1, 4)


async def test_messages_that_are_kept_at_the_same_time_by_two_nodes_get_numbers_of_their_own(stores):
    one, two = stores
    kept = await asyncio.gather(*(store.keep("u.ada", b"%d" % n, BOUNDS) for n in range(20) for store in (one, two)))
    assert sorted(record.number for record, _ in kept) == list(range(1, 41))
    page = await one.read("u.ada", 0, 100)
    assert {record.number: record.data for record in page.records} == {record.number: record.data for record, _ in kept}


async def test_a_page_begins_after_a_number_and_has_at_most_so_many_messages(store):
    await keep(store, *(b"%d" % n for n in range(1, 11)))
    assert numbers(await store.read("u.ada", 3, 4)) == [4, 5, 6, 7]
    assert numbers(await store.read("u.ada", 7, 4)) == [8, 9, 10]
    assert await store.read("u.ada", 10, 4) == Page((), Span(1, 10))


async def test_an_empty_box_has_no_messages(store):
    assert await store.read("u.nobody", 0, 4) == Page((), Span(1, 0))
    assert await store.last(["u.nobody"]) == [0]


async def test_bytes_come_back_as_they_were(store):
    data = bytes(range(256)) * 100
    await keep(store, data)
    (record,) = (await store.read("u.ada", 0, 1)).records
    assert record.data == data
    assert record.at > 1_700_000_000


async def test_the_oldest_messages_give_way_to_new_ones(store):
    bounds = replace(BOUNDS, messages=5)
    await keep(store, *(b"%d" % n for n in range(12)), bounds=bounds)
    page = await store.read("u.ada", 0, 100)
    assert numbers(page) == [8, 9, 10, 11, 12]
    assert page.span == Span(8, 12)


async def test_the_oldest_bytes_give_way_to_new_ones(store, bounds_bytes):
    if not bounds_bytes:
        pytest.skip("JetStream bounds messages, not bytes")
    bounds = replace(BOUNDS, bytes=100)
    await keep(store, b"x" * 40, b"y" * 40, b"z" * 40, bounds=bounds)
    assert numbers(await store.read("u.ada", 0, 9)) == [2, 3]
    await keep(store, b"x" * 500, bounds=bounds)  # the newest stays
    assert numbers(await store.read("u.ada", 0, 9)) == [4]
    await keep(store, b"x" * 40, b"y" * 40, bounds=bounds)
    assert numbers(await store.read("u.ada", 0, 9)) == [5, 6]


async def test_a_repeat_with_the_same_key_is_the_same_message(stores):
    one, two = stores
    first, is_new = await one.keep("u.ada", b"invoice", BOUNDS, key="invoice 7 é")
    assert is_new
    again, is_new = await two.keep("u.ada", b"invoice", BOUNDS, key="invoice 7 é")
    assert (again.number, again.at, is_new) == (first.number, first.at, False)
    assert (await one.keep("u.ada", b"other", BOUNDS, key="invoice 8"))[0].number == 2
    assert (await one.keep("u.bob", b"invoice", BOUNDS, key="invoice 7 é"))[1]


async def test_messages_expire_and_numbers_go_on(store):
    brief = replace(BOUNDS, ttl=3600)
    await keep(store, b"a", bounds=brief)
    await store.keep("u.ada", b"b", brief, ttl=0.5)
    await keep(store, b"c", bounds=brief)

    async def is_gone():
        return numbers(await store.read("u.ada", 0, 9)) == [1, 3]

    await until(is_gone)
    assert await keep(store, b"d", bounds=brief) == [4]


async def test_numbers_go_on_when_all_messages_have_expired(store):
    for _ in range(3):
        await store.keep("u.ada", b"a", BOUNDS, ttl=0.5)

    async def is_gone():
        return not (await store.read("u.ada", 0, 9)).records

    await until(is_gone)
    assert (await store.read("u.ada", 0, 9)).span == Span(4, 3)
    assert await keep(store, b"b") == [4]


async def test_a_new_device_begins_before_the_oldest_message_or_after_the_newest(store):
    await keep(store, b"a", b"b", b"c")
    assert await store.cursor("u.ada", "phone", BOUNDS) == Cursor(0, Span(1, 3))
    assert await store.cursor("u.ada", "pad", BOUNDS, from_now=True) == Cursor(3, Span(1, 3))
    assert await store.cursor("u.bob", "phone", BOUNDS) == Cursor(0, Span(1, 0))


async def test_a_cursor_moves_forward_and_never_back(stores):
    one, two = stores
    await keep(one, *(b"%d" % n for n in range(9)))
    await one.cursor("u.ada", "phone", BOUNDS)
    await one.seen("u.ada", "phone", 5)
    assert (await two.cursor("u.ada", "phone", BOUNDS)).after == 5
    await two.seen("u.ada", "phone", 3)
    assert (await one.cursor("u.ada", "phone", BOUNDS)).after == 5
    await asyncio.gather(*(store.seen("u.ada", "phone", n) for n in (6, 9, 7) for store in (one, two)))
    assert (await one.cursor("u.ada", "phone", BOUNDS)).after == 9
    assert (await one.cursor("u.ada", "pad", BOUNDS)).after == 0


async def test_a_cursor_never_goes_beyond_the_newest_message(store):
    await keep(store, b"a", b"b")
    await store.cursor("u.ada", "phone", BOUNDS)
    await store.seen("u.ada", "phone", 2**50)
    assert (await store.cursor("u.ada", "phone", BOUNDS)).after == 2


async def test_an_unknown_device_has_no_cursor_to_move(store):
    await keep(store, b"a")
    await store.seen("u.ada", "phone", 1)
    assert (await store.cursor("u.ada", "phone", BOUNDS)).after == 0


async def test_one_device_more_than_the_bound_forgets_the_one_that_was_used_least_recently(store):
    await keep(store, b"a", b"b")
    for device in ("one", "two", "three"):
        await store.cursor("u.ada", device, BOUNDS)
        await store.seen("u.ada", device, 1)
    await store.seen("u.ada", "one", 2)
    await store.cursor("u.ada", "four", BOUNDS)
    assert (await store.cursor("u.ada", "one", BOUNDS)).after == 2
    assert (await store.cursor("u.ada", "three", BOUNDS)).after == 1
    assert (await store.cursor("u.ada", "two", BOUNDS)).after == 0


async def test_names_of_devices_may_have_any_characters(store):
    await keep(store, b"a")
    for name in ("é ü", "a.b*>", "x" * 200, " ", "\ud800"):
        await store.cursor("u.ada", name, replace(BOUNDS, devices=10))
        await store.seen("u.ada", name, 1)
        assert (await store.cursor("u.ada", name, replace(BOUNDS, devices=10))).after == 1


async def test_the_newest_numbers_of_many_boxes_come_together(store):
    await keep(store, b"a", b"b", box="u.one")
    await keep(store, b"a", box="u.two")
    assert await store.last(["u.one", "u.none", "u.two"]) == [2, 0, 1]


async def test_it_is_known_how_far_the_devices_have_come_together(stores):
    one, two = stores
    await keep(one, *(b"%d" % n for n in range(9)))
    assert await one.furthest("u.ada") == await one.furthest("u.bob") == 0
    for device, number in (("phone", 5), ("pad", 2)):
        await one.cursor("u.ada", device, BOUNDS)
        await one.seen("u.ada", device, number)
    assert await two.furthest("u.ada") == 5


async def test_a_box_has_one_epoch_whoever_sees_it_and_no_other_box_has_that(stores):
    one, two = stores
    assert (await one.read("u.ada", 0, 9)).span.epoch == ""
    keeping = [store.keep("u.ada", b"%d" % n, BOUNDS) for n in range(5) for store in stores]
    placing = [store.cursor("u.ada", f"device {n}", BOUNDS) for n in range(2) for store in stores]
    kept, placed = await asyncio.gather(asyncio.gather(*keeping), asyncio.gather(*placing))
    (epoch,) = {record.epoch for record, _ in kept} | {cursor.span.epoch for cursor in placed}
    assert epoch
    assert (await two.read("u.ada", 3, 2)).span.epoch == epoch
    assert (await one.keep("u.ada", b"a", BOUNDS, key="7"))[0].epoch == epoch
    assert (await two.keep("u.ada", b"a", BOUNDS, key="7"))[0].epoch == epoch
    other = await one.cursor("u.bob", "phone", BOUNDS)
    assert other.span.epoch not in ("", epoch)
    assert (await two.keep("u.bob", b"a", BOUNDS))[0].epoch == other.span.epoch


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_box_that_the_engine_has_lost_begins_another_epoch(kind, request):
    async for cluster in run_cluster(kind, request):
        store = (await cluster.node()).broker.store
        await keep(store, b"a", b"b")
        epoch = (await store.cursor("u.ada", "phone", BOUNDS)).span.epoch
        await forget_boxes(store)
        assert await keep(store, b"a", b"b", b"c") == [1, 2, 3]
        span = (await store.read("u.ada", 0, 9)).span
        assert span == Span(1, 3)
        assert span.epoch not in ("", epoch)


def note_places(store):
    """The places from which a store on NATS reads."""
    places, batch = [], store._batch

    async def noted(connection, subject, place, count):
        places.append(place)
        return await batch(connection, subject, place, count)

    store._batch = noted
    return places


async def test_nats_looks_for_the_place_of_a_number_between_those_of_other_boxes(request):
    bounds = replace(BOUNDS, messages=1000)
    async for cluster in run_cluster("nats", request):
        store = (await cluster.node()).broker.store
        for n in range(300):
            await keep(store, b"%d" % n, bounds=bounds)
            if n % 3:
                await keep(store, b"other", box=f"u.{n % 7}", bounds=bounds)
        places = note_places(store)
        for after in (0, 5, 295, 150, 299, 200, 216, 232, 1):
            places.clear()
            page = await store.read("u.ada", after, 16)
            assert numbers(page) == list(range(after + 1, min(300, after + 16) + 1))
            assert len(places) <= 2  # not from the beginning


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_store_whose_engine_is_away_says_so(kind, request):
    async for cluster in run_cluster(kind, request):
        node = await cluster.node()
        await keep(node.broker.store, b"a")
        cluster.stop()
        await unavailable(node.broker.store.keep("u.ada", b"b", BOUNDS))
        await unavailable(node.broker.store.read("u.ada", 0, 9))
        cluster.start()


async def test_nats_keeps_messages_in_files_on_as_many_servers_as_the_register(request):
    async for cluster in run_cluster("nats", request):
        node = await cluster.node()
        await keep(node.broker.store, b"a")
        streams = node.broker.connection.requests.stream
        for name in (node.broker.store._messages, node.broker.store._cursors):
            config = (await streams.stream_info(name)).config
            assert (config.storage, config.num_replicas) == ("file", node.broker._replicas)


async def test_a_step_that_cannot_be_made_harms_no_other(tmp_path):
    store = SqliteStore(str(tmp_path / "inbox.db"))
    await store.open()
    wrong, right = await asyncio.gather(
        store.read("u.ada", 2**70, 5), store.keep("u.ada", b"a", BOUNDS), return_exceptions=True
    )
    assert isinstance(wrong, WseError)
    assert right[0].number == 1
    await store.close()


async def test_a_file_keeps_messages_over_a_restart(tmp_path):
    path = str(tmp_path / "inbox.db")
    store = SqliteStore(path)
    await store.open()
    await keep(store, b"a", b"b")
    await store.cursor("u.ada", "phone", BOUNDS)
    await store.seen("u.ada", "phone", 1)
    await store.close()
    again = SqliteStore(path)
    await again.open()
    assert await again.cursor("u.ada", "phone", BOUNDS) == Cursor(1, Span(1, 2))
    assert await keep(again, b"c") == [3]
    await again.close()


async def test_a_file_that_cannot_be_opened_is_an_error_of_the_store(tmp_path):
    store = SqliteStore(str(tmp_path))
    await unavailable(store.open())
    await unavailable(store.keep("u.ada", b"a", BOUNDS))
