"""The common part of bench/run.py and bench/cluster.py: their options, and the facts about a run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.env import Environment, machine, prepare, versions
from harness.measure import Settings

Results = dict[str, Any]


class Titled(Protocol):
    """Something with a name in tables."""

    @property
    def title(self) -> str: ...


T = TypeVar("T", bound=Titled)


def parser(doc: str, page: Path, **choices: list[str]) -> argparse.ArgumentParser:
    """The options of both programs; each of `choices` takes some of the given names, by default all."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="a smoke run: do not quote its figures")
    for option, names in choices.items():
        result.add_argument(
            f"--{option}",
            metavar="A,B",
            type=some_of(option, names),
            default=names,
            help=f"only these of {', '.join(names)}",
        )
    result.add_argument("--rounds", type=int, help="how often each measurement is made")
    result.add_argument("--no-install", action="store_true", help="install nothing, skip what is not installed")
    result.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    result.add_argument("--update-docs", action="store_true", help=f"update {page}")
    result.add_argument("--from", dest="earlier", type=Path, metavar="FILE", help="report an earlier run's JSON")
    return result


def some_of(option: str, names: list[str]) -> Callable[[str], list[str]]:
    """Reads names separated by commas, and rejects unknown ones."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = set(chosen) - set(names)
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {option}: {', '.join(sorted(unknown))}")
        return chosen

    return read


class Session:
    """One run of a program, from its settings to its results.

    Attributes:
        settings: The extent of the run.
        notes: Remarks that a reader needs to interpret the figures.
    """

    def __init__(self, args: argparse.Namespace, env: Environment, full: Settings, quick: Settings) -> None:
        self.env = env
        self.settings = quick if args.quick else full
        if args.rounds:
            self.settings = replace(self.settings, rounds=args.rounds, idle_rounds=args.rounds)
        self.notes = ["a quick run: the figures show that everything works, no more"] if args.quick else []
        self._machine = machine()
        load = self._machine["load_before"]
        if load > 0.5:
            self.notes.append(f"other programs were running when it began (load {load})")
        self._began = time.monotonic()

    def runnable(self, items: Iterable[T], missing: Callable[[T], str]) -> list[T]:
        """The ones whose requirements are met; a note is made of the others."""
        found = {item: missing(item) for item in items}
        self.notes += [f"{item.title} was skipped, {why}" for item, why in found.items() if why]
        return [item for item, why in found.items() if not why]

    def results(self, problems: dict[str, str], **figures: Any) -> Results:
        """All facts about the run, with these figures."""
        script = Path(sys.argv[0]).name
        return {
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": " ".join([f"python bench/{script}", *sys.argv[1:]]),
            "took_s": round(time.monotonic() - self._began, 1),
            "machine": {**self._machine, "load_after": round(os.getloadavg()[0], 2)},
            "versions": versions(self.env),
            "settings": asdict(self.settings),
            "notes": [*self.notes, *(f"{where} failed: {problem}" for where, problem in problems.items())],
            **figures,
        }


def results_of(
    args: argparse.Namespace, measure: Callable[[argparse.Namespace, Environment], Results], keep: Path
) -> Results:
    """Measure, or read earlier results; results for the documentation are also written to a file.

    Raises:
        SystemExit: Nothing can be measured.
    """
    # SIGTERM must run the `finally` clauses, which stop the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.earlier:
        results: Results = json.loads(args.earlier.read_text())
    else:
        try:
            env = prepare(install=not args.no_install)
        except RuntimeError as exc:
            sys.exit(f"nothing is measured: {exc}")
        results = measure(args, env)
    if args.update_docs and not args.earlier:
        args.json = args.json or keep
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def status(results: Results) -> int:
    """The exit status: 1 if a measurement has failed."""
    return int(any(" failed: " in note for note in results["notes"]))
