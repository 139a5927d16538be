"""Metrics as plain values: read from one server, sent from process to process, and added up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from wse.core.stats import Histogram

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "min", "max"]
Labels = tuple[str, ...]


@dataclass(slots=True)
class Buckets:
    """A histogram's content.

    Attributes:
        bounds: The upper bound of each bucket but the last.
        counts: The values in each bucket.
        total: The sum of all values.
    """

    bounds: tuple[float, ...]
    counts: list[int]
    total: float

    @classmethod
    def of(cls, histogram: Histogram) -> Buckets:
        """What a histogram has now."""
        return cls(histogram.bounds, list(histogram.counts), histogram.total)

    def add(self, other: Buckets) -> None:
        """Add what another process has counted."""
        if other.bounds == self.bounds:  # else it is of another version
            self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
            self.total += other.total


@dataclass(slots=True)
class Family:
    """One metric, with a value for each combination of its labels.

    Attributes:
        name: Its name, without `_total`.
        help: What it is.
        kind: What kind of metric.
        labels: The names of its labels.
        merge: How the values of several processes become one; counters and histograms are always added.
        values: The values, by the values of the labels.
        histograms: The same for a histogram.
    """

    name: str
    help: str
    kind: Kind
    labels: Labels = ()
    merge: Merge = "sum"
    values: dict[Labels, float] = field(default_factory=dict)
    histograms: dict[Labels, Buckets] = field(default_factory=dict)

    def set(self, value: float, *labels: str) -> Family:
        """Set a value; returns the family."""
        self.values[labels] = value
        return self

    def add(self, other: Family) -> None:
        """Add the values of another process."""
        for labels, value in other.values.items():
            mine = self.values.get(labels)
            if mine is None:
                self.values[labels] = value
            elif self.kind == "gauge" and self.merge != "sum":
                self.values[labels] = (min if self.merge == "min" else max)(mine, value)
            else:
                self.values[labels] = mine + value
        for labels, buckets in other.histograms.items():
            if labels in self.histograms:
                self.histograms[labels].add(buckets)
            else:
                self.histograms[labels] = Buckets(buckets.bounds, list(buckets.counts), buckets.total)

    def to_plain(self) -> list[Any]:
        """The family as values that JSON has."""
        values = [[labels, value] for labels, value in self.values.items()]
        histograms = [[labels, b.bounds, b.counts, b.total] for labels, b in self.histograms.items()]
        return [self.name, self.help, self.kind, self.labels, self.merge, values, histograms]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Family:
        """The family that `to_plain` was made of."""
        name, text, kind, labels, merge, values, histograms = plain
        return cls(
            name,
            text,
            kind,
            tuple(labels),
            merge,
            {tuple(labels): value for labels, value in values},
            {tuple(labels): Buckets(tuple(bounds), counts, total) for labels, bounds, counts, total in histograms},
        )


def add_up(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """The metrics of several processes as those of one."""
    whole: dict[str, Family] = {}
    for families in processes:
        for family in families:
            mine = whole.get(family.name)
            if mine is None:
                mine = whole[family.name] = Family(family.name, family.help, family.kind, family.labels, family.merge)
            mine.add(family)
    return list(whole.values())


def without_gauges(families: Iterable[Family]) -> list[Family]:
    """What remains of a process that has ended: what it has counted, so that no sum ever falls."""
    return [family for family in families if family.kind != "gauge"]
