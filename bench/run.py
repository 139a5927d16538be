"""Measures WSE beside its peers: `python bench/run.py`, or `make bench`.

    python bench/run.py                  everything, about ten minutes; the table goes to stdout
    python bench/run.py --quick          a smoke run of less than a minute: do not quote its figures
    python bench/run.py --update-docs    and put table and plot into docs/explanation/speed.md
    python bench/run.py --from bench/results.json --update-docs    the same of an earlier run

The peers are installed below bench/.env and nowhere else. All servers listen on 127.0.0.1 and end with the program.
What is measured, and how, is told in docs/explanation/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.env import BENCH, ROOT, Environment, machine, prepare, versions
from harness.measure import Run, Settings, raise_file_limit
from harness.peers import CLIENTS, PEERS, WORKLOADS, Workload
from harness.report import markdown, svg, update_docs

FULL = Settings(rounds=5, idle_rounds=3, seconds=1.0, warmup=0.25, settle=1.0)
QUICK = Settings(rounds=1, idle_rounds=1, seconds=0.15, warmup=0.05, settle=0.1)
QUICK_CONNECTIONS = 200


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than a minute")
    parser.add_argument("--peers", metavar="A,B", help=f"only these of {', '.join(names)}")
    parser.add_argument("--workloads", metavar="A,B", help=f"only these of {', '.join(w.name for w in WORKLOADS)}")
    parser.add_argument("--rounds", type=int, help="how often each measurement is made")
    parser.add_argument("--seconds", type=float, help="how long one measurement of calls or fan-out takes")
    parser.add_argument("--no-install", action="store_true", help="install nothing, skip what is not installed")
    parser.add_argument("--install", action="store_true", help="install the peers, and measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the plot there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, not to stdout")
    parser.add_argument("--update-docs", action="store_true", help="update docs/explanation/speed.md and its plot")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FILE", help="report an earlier run's JSON")
    args = parser.parse_args(argv)
    for option, known in (("peers", names), ("workloads", [work.name for work in WORKLOADS])):
        unknown = set((getattr(args, option) or names[0]).split(",")) - set(known) - {names[0]}
        if unknown:
            parser.error(f"unknown {option}: {', '.join(sorted(unknown))}")
    return args


def selected(items: tuple[Any, ...], wanted: str | None) -> list[Any]:
    """Those that were asked for, all by default."""
    return [item for item in items if wanted is None or item.name in wanted.split(",")]


def works(args: argparse.Namespace, possible: int, notes: list[str]) -> list[Workload]:
    """The workloads, made smaller for a quick run or where the limit on open files asks for it."""
    result = []
    for work in selected(WORKLOADS, args.workloads):
        most = min(possible, QUICK_CONNECTIONS) if args.quick else possible
        if possible < work.connections and not args.quick:
            notes.append(f"`ulimit -Hn` allows {possible:,} connections for {work.name}, not {work.connections:,}")
        connections = min(work.connections, most)
        window = min(work.window, max(1, connections // 2)) if work.mode == "idle" else work.window
        result.append(replace(work, connections=connections, window=window))
    return result


def measure(args: argparse.Namespace, env: Environment) -> dict[str, Any]:
    """Measure, and put everything that is to be known into one dict."""
    settings = QUICK if args.quick else FULL
    if args.rounds:
        settings = replace(settings, rounds=args.rounds, idle_rounds=args.rounds)
    if args.seconds:
        settings = replace(settings, seconds=args.seconds)
    notes = ["a quick run: the figures show that everything works, no more"] if args.quick else []
    here = machine()
    if here["load_before"] > 0.5:
        notes.append(f"other programs were running when it began (load {here['load_before']})")
    workloads = works(args, raise_file_limit(), notes)
    runnable: list[list[Any]] = []
    for items in (selected(PEERS, args.peers), selected(CLIENTS, args.peers)):
        missing = {item: env.missing(item.kind, item.needs) for item in items}
        runnable.append([item for item in items if not missing[item]])
        notes += [f"{item.title} was skipped, {why}" for item, why in missing.items() if why]
    run = Run(env, settings)
    if run.pinned is None:
        notes.append("one core only: servers share it with what loads them, which makes every figure another")
    began = time.monotonic()
    run.measure(workloads, *runnable)
    notes += [f"{where} failed: {problem}" for where, problem in run.problems.items()]
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python bench/run.py", *sys.argv[1:]]),
        "took_s": round(time.monotonic() - began, 1),
        "machine": here,
        "versions": versions(env),
        "settings": {
            **{name: getattr(settings, name) for name in settings.__dataclass_fields__},
            "connections": {work.name: [work.connections, work.window] for work in workloads},
        },
        "pinned": [sorted(cores) for cores in run.pinned] if run.pinned else None,
        "notes": notes,
        "medians": run.medians(),
        "samples": run.samples,
    }


def main() -> int:
    args = arguments()
    # So that `finally` stops the servers, too, when somebody stops us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.earlier:
        results = json.loads(args.earlier.read_text())
    else:
        try:
            env = prepare(install=not args.no_install)
        except RuntimeError as exc:
            print(f"nothing is measured: {exc}", file=sys.stderr)
            return 1
        if args.install:
            return 0
        results = measure(args, env)
    if args.update_docs and not args.earlier:
        args.json = args.json or BENCH / "results.json"
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if args.svg:
        args.svg.write_text(svg(results))
    if args.update_docs:
        counts = BENCH / "instructions.json"
        records = json.loads(counts.read_text()) if counts.exists() else []
        update_docs(results, records, ROOT / "docs" / "explanation" / "speed.md")
    if args.markdown:
        args.markdown.write_text(markdown(results))
    elif not args.update_docs:
        print(markdown(results))
    return 1 if any(" failed: " in note for note in results["notes"]) else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
