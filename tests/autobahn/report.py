"""What came of a run: a table, and what is not OK with its cause."""

from collections import Counter
from dataclasses import dataclass

SECTIONS = {
    1: "framing",
    2: "pings and pongs",
    3: "reserved bits",
    4: "opcodes",
    5: "fragmentation",
    6: "UTF-8",
    7: "closing",
    9: "limits, performance",
    10: "auto-fragmentation",
    12: "compression",
    13: "compression, parameters",
}

AHEAD = "picows parses one frame ahead: an invalid frame right behind closes before the valid one is answered"
WHOLE = "picows gives whole frames: text is checked when its frame is complete, not while it comes"
CAUSES = {
    "4.1.3": AHEAD,
    "4.1.4": AHEAD,
    "4.1.5": AHEAD,
    "4.2.3": AHEAD,
    "4.2.4": AHEAD,
    "4.2.5": AHEAD,
    "7.1.2": "picows parses one frame ahead: a second close frame right behind the first is answered with 1002",
    "6.4.3": WHOLE,
    "6.4.4": WHOLE,
}
"""What is known not to be OK with us, at either side; 4.1.5 and 4.2.5 only if the bytes come in one read by chance."""

EXPECTED_FAILURES = {"7.1.2"}

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}


@dataclass(frozen=True)
class Outcome:
    """One case: how the library behaved, and how it closed."""

    role: str
    library: str
    case: str
    behavior: str
    closing: str

    @property
    def section(self):
        return int(self.case.split(".", 1)[0])

    @property
    def verdict(self):
        """The worse of the two."""
        if self.behavior in GOOD and self.closing not in GOOD:
            return self.closing
        return self.behavior

    @property
    def column(self):
        return f"{self.library} {self.role}"


def unexpected(outcomes):
    """What of ours fails, and is not known to."""
    return [
        outcome
        for outcome in outcomes
        if outcome.library == "wse" and outcome.verdict not in GOOD and outcome.case not in EXPECTED_FAILURES
    ]


def cell(outcomes):
    """`16` for as many that are all OK, else `14 OK, 2 NON-STRICT`."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    if set(counts) == {"OK"}:
        return str(counts["OK"])
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda item: -item[1]))


def print_report(outcomes):
    """A Markdown table of sections and libraries, then every outcome of ours that is not OK."""
    columns = sorted({outcome.column for outcome in outcomes}, key=lambda name: (not name.startswith("wse"), name))
    print("| section |", " | ".join(columns), "|")
    print("|---|" + "---|" * len(columns))
    rows = [(f"{number} {name}", {number}) for number, name in SECTIONS.items()] + [("all", set(SECTIONS))]
    for name, numbers in rows:
        cells = [
            cell([outcome for outcome in outcomes if outcome.column == column and outcome.section in numbers])
            for column in columns
        ]
        print(f"| {name} |", " | ".join(cells), "|")
    print()
    for outcome in outcomes:
        if outcome.library == "wse" and outcome.verdict not in ("OK", "INFORMATIONAL"):
            cause = CAUSES.get(outcome.case, "unexpected; its report is below .artifacts/autobahn/reports")
            print(f"{outcome.column} {outcome.case} {outcome.verdict}: {cause}")
    bad = unexpected(outcomes)
    print(f"\n{len(bad)} unexpected" if bad else "\nnothing unexpected")
