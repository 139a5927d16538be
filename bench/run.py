"""Measures WSE and its peers: `python bench/run.py`, or `make bench`.

    python bench/run.py                  everything, about ten minutes; the table goes to stdout
    python bench/run.py --quick          a smoke run of less than a minute: do not quote its figures
    python bench/run.py --update-docs    also puts table and plot into docs/explanation/speed.md
    python bench/run.py --from bench/results.json --update-docs    the same with the results of an earlier run

The peers are installed below bench/.env and nowhere else. All servers listen on 127.0.0.1 and end with the program.
docs/explanation/speed.md describes what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from harness.env import BENCH, ROOT, Environment, prepare
from harness.measure import Run, Settings, raise_file_limit
from harness.peers import CLIENTS, PEERS, WORKLOADS, Client, Peer, Workload
from harness.program import Results, Session, parser, results_of, status
from harness.report import markdown, svg, update_docs

FULL = Settings(rounds=5, idle_rounds=3, seconds=1.0, warmup=0.25, settle=1.0)
QUICK = Settings(rounds=1, idle_rounds=1, seconds=0.15, warmup=0.05, settle=0.1)
QUICK_CONNECTIONS = 200


PAGE = Path("docs", "explanation", "speed.md")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    assert __doc__
    names = {"peers": [peer.name for peer in PEERS], "workloads": [work.name for work in WORKLOADS]}
    options = parser(__doc__, PAGE, **names)
    options.add_argument("--seconds", type=float, help="how long one measurement of calls or fan-out takes")
    options.add_argument("--install", action="store_true", help="install the peers, and measure nothing")
    options.add_argument("--svg", type=Path, metavar="FILE", help="write the plot there")
    options.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, not to stdout")
    return options.parse_args(argv)


def works(args: argparse.Namespace, possible: int, notes: list[str]) -> list[Workload]:
    """The workloads, reduced for a quick run or to the limit on open files."""
    result = []
    for work in WORKLOADS:
        if work.name not in args.workloads:
            continue
        most = min(possible, QUICK_CONNECTIONS) if args.quick else possible
        if possible < work.connections and not args.quick:
            notes.append(f"`ulimit -Hn` allows {possible:,} connections for {work.name}, not {work.connections:,}")
        connections = min(work.connections, most)
        timed = {"idle": max(1, connections // 2), "return": connections}
        window = min(work.window, timed.get(work.mode, work.window))
        result.append(replace(work, connections=connections, window=window))
    return result


def measure(args: argparse.Namespace, env: Environment) -> Results:
    """Measure, and return all results in one dict."""
    session = Session(args, env, FULL, QUICK)
    if args.seconds:
        session.settings = replace(session.settings, seconds=args.seconds)
    workloads = works(args, raise_file_limit(), session.notes)

    def missing(item: Peer | Client) -> str:
        return env.missing(item.kind, item.needs)

    peers = session.runnable([peer for peer in PEERS if peer.name in args.peers], missing)
    clients = session.runnable([client for client in CLIENTS if client.name in args.peers], missing)
    run = Run(env, session.settings)
    if run.pinned is None:
        session.notes.append("one core only: servers share it with what loads them, which makes every figure another")
    run.measure(workloads, peers, clients)
    results = session.results(
        run.problems,
        pinned=[sorted(cores) for cores in run.pinned] if run.pinned else None,
        medians=run.medians(),
        samples=run.samples,
    )
    results["settings"]["connections"] = {work.name: [work.connections, work.window] for work in workloads}
    return results


def main() -> int:
    args = arguments()
    if args.install:
        prepare(install=True)
        return 0
    results = results_of(args, measure, keep=BENCH / "results.json")
    if args.svg:
        args.svg.write_text(svg(results))
    if args.update_docs:
        counts = BENCH / "instructions.json"
        records = json.loads(counts.read_text()) if counts.exists() else []
        update_docs(results, records, ROOT / PAGE)
    if args.markdown:
        args.markdown.write_text(markdown(results))
    elif not args.update_docs:
        print(markdown(results))
    return status(results)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
