"""wse.transports.tcp where the kernel says nothing, and what it is asked for where it does."""

import math
import socket

import pytest

from wse.transports.tcp import FAST_HIGH_WATER, HIGH_WATER, UNSENT, Pace, Uptake, bound_unsent


class FakeTransport:
    """A transport of asyncio with a buffer that the test fills and empties."""

    def __init__(self, sock=None):
        self.sock = sock
        self.waiting = 0

    def get_extra_info(self, name):
        return self.sock

    def get_write_buffer_size(self):
        return self.waiting


def test_without_the_kernels_word_a_buffer_that_shrinks_shows_that_the_peer_takes_something():
    transport = FakeTransport()
    transport.waiting = 100
    uptake = Uptake(transport)
    assert uptake.pause(1.0) == math.inf
    transport.waiting = 60
    assert uptake.pause(2.0) == 0
    assert uptake.pause(5.0) == 3
    transport.waiting = 80
    assert uptake.pause(6.0) == 4
    transport.waiting = 0
    assert uptake.pause(7.0) == 0
    assert uptake.pause(8.0) == 1


def test_bytes_that_did_not_wait_are_no_sign_of_life():
    one, other = socket.create_server(("127.0.0.1", 0)), socket.socket()
    with one, other:
        other.connect(one.getsockname())
        accepted, _ = one.accept()
        with accepted:
            uptake = Uptake(FakeTransport(accepted))
            accepted.send(b"its kernel takes this at once")
            assert other.recv(100)
            assert uptake.pause(1.0) == math.inf


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such bound")
def test_what_the_kernel_cannot_send_yet_is_bounded():
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.socket() as client:
        bound_unsent(server)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            # The connections of a listening socket inherit it.
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT


def test_a_receiver_that_often_takes_more_at_once_gets_a_larger_buffer_until_it_is_slow():
    pace = Pace()
    assert pace.high_water == HIGH_WATER

    def pause(seconds):
        pace.paused(100.0)
        return pace.resumed(100.0 + seconds)

    assert [pause(0.001) for _ in range(15)] == [False] * 15
    assert not pause(0.2)
    assert [pause(0.001) for _ in range(17)] == [False] * 15 + [True, False]
    assert pace.high_water == FAST_HIGH_WATER
    assert pause(0.2)
    assert pace.high_water == HIGH_WATER


def test_sockets_that_are_not_tcp_have_no_such_bound():
    bound_unsent(None)
    one, other = socket.socketpair()
    with one, other:
        bound_unsent(one)
        assert Uptake(FakeTransport(one)).pause(1.0) == math.inf
