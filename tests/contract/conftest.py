"""Fixtures of the contract suite."""

import pytest

from support.net import tiny_protocol


@pytest.fixture
def tiny():
    return tiny_protocol()
