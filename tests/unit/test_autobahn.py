"""What `make autobahn` makes of the suite's outcomes."""

import pytest

from autobahn.report import Outcome, cell, print_report, unexpected


def outcome(case, behavior="OK", closing="OK", library="wse"):
    return Outcome("server", library, case, behavior, closing)


@pytest.mark.parametrize(
    "bad",
    [outcome("7.1.1", "FAILED"), outcome("7.1.1", "OK", "FAILED BY CLIENT"), outcome("12.1.1", "UNIMPLEMENTED")],
)
def test_a_failure_that_is_not_known_fails_the_run(bad):
    assert unexpected([outcome("1.1.1"), bad]) == [bad]


def test_what_is_known_and_what_others_do_does_not_fail_the_run():
    known = [
        outcome("7.1.2", "FAILED", "WRONG CODE"),
        outcome("6.4.3", "NON-STRICT"),
        outcome("7.1.6", "INFORMATIONAL"),
    ]
    assert unexpected([*known, outcome("7.1.1", "FAILED", library="websockets")]) == []


def test_a_cell_tells_what_is_not_ok():
    assert cell([outcome("1.1.1"), outcome("1.1.2")]) == "2"
    assert cell([outcome("1.1.1"), outcome("1.1.2", "FAILED"), outcome("1.1.3")]) == "2 OK, 1 FAILED"


def test_the_report_gives_causes(capsys):
    print_report([outcome("7.1.2", "FAILED"), outcome("7.1.1", "FAILED"), outcome("1.1.1", library="websockets")])
    printed = capsys.readouterr().out
    assert "| section | wse server | websockets server |" in printed
    assert "7.1.2 FAILED: picows" in printed
    assert "7.1.1 FAILED: unexpected" in printed
    assert "1 unexpected" in printed
