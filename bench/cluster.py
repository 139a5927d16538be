"""Measures several nodes, one node alone, and peers: `python bench/cluster.py`, or `make bench-cluster`.

    python bench/cluster.py                 everything, about twelve minutes; the tables go to stdout
    python bench/cluster.py --quick         a smoke run of some seconds: do not quote its figures
    python bench/cluster.py --update-docs   also puts the tables into docs/how-to/scale.md
    python bench/cluster.py --from bench/cluster.json --update-docs    the same with the results of an earlier run

The peers and engines are installed below bench/.env and nowhere else. Everything listens on 127.0.0.1 and ends with the
program. docs/how-to/scale.md describes what is measured, and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from harness.cluster_report import markdown, update_docs
from harness.clusters import KINDS, WORKLOADS, ClusterRun
from harness.env import BENCH, ROOT, Environment
from harness.measure import Settings, raise_file_limit
from harness.program import Results, Session, parser, results_of, status

FULL = Settings(rounds=5, idle_rounds=1, seconds=1.0, warmup=0.25, settle=2.0)
QUICK = Settings(rounds=1, idle_rounds=1, seconds=0.15, warmup=0.05, settle=0.1)
OTHERS = ("rates", "spread", "engines")
"""The measurements other than the workloads."""

USERS, QUICK_USERS = 50_000, 60
MESSAGES, QUICK_MESSAGES = 500_000, 5000
QUICK_CONNECTIONS = 40


PAGE = Path("docs", "how-to", "scale.md")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    assert __doc__
    works = [*(work.name for work in WORKLOADS), *OTHERS]
    options = parser(__doc__, PAGE, kinds=[kind.name for kind in KINDS], workloads=works)
    options.add_argument("--users", type=int, help="how many users are spread over three nodes")
    return options.parse_args(argv)


def measure(args: argparse.Namespace, env: Environment) -> Results:
    """Measure, and return all results in one dict."""
    session = Session(args, env, FULL, QUICK)
    raise_file_limit()
    works = [work for work in WORKLOADS if work.name in args.workloads]
    if args.quick:
        works = [replace(work, connections=min(work.connections, QUICK_CONNECTIONS)) for work in works]
    kinds = session.runnable([kind for kind in KINDS if kind.name in args.kinds], lambda kind: kind.missing(env))
    run = ClusterRun(env, session.settings)
    if run.pinned:
        count = len(run.pinned[0])
        cores = f"{count} core{'s' * (count > 1)}"
        session.notes.append(f"all nodes and their engine shared {cores}, what loads them had another")
    run.measure(works, kinds)
    users = args.users or (QUICK_USERS if args.quick else USERS)
    ours = [kind for kind in kinds if kind.peer.name == "wse"]
    if "rates" in args.workloads:
        run.measure_rates(ours)
    if "spread" in args.workloads:
        run.measure_spread(ours, users)
    if "engines" in args.workloads:
        run.measure_engines(kinds, QUICK_MESSAGES if args.quick else MESSAGES)
    return session.results(
        run.problems,
        users=users,
        medians=run.medians(),
        samples=run.samples,
        rates=run.rates,
        spread=run.spread,
        engines=run.engines,
    )


def main() -> int:
    args = arguments()
    results = results_of(args, measure, keep=BENCH / "cluster.json")
    if args.update_docs:
        update_docs(results, ROOT / PAGE)
    else:
        print(markdown(results))
    return status(results)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
