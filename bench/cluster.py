"""Measures several nodes, beside one alone, and beside peers: `python bench/cluster.py`, or `make bench-cluster`.

    python bench/cluster.py                 everything, about twelve minutes; the tables go to stdout
    python bench/cluster.py --quick         a smoke run of some seconds: do not quote its figures
    python bench/cluster.py --update-docs   and put the tables into docs/how-to/scale.md
    python bench/cluster.py --from bench/cluster.json --update-docs    the same of an earlier run

The peers and engines are installed below bench/.env and nowhere else. Everything listens on 127.0.0.1 and ends with the
program. What is measured, and how, is told in docs/how-to/scale.md.
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

from harness.cluster_report import markdown, update_docs
from harness.clusters import KINDS, WORKLOADS, ClusterRun
from harness.env import BENCH, ROOT, Environment, machine, prepare, versions
from harness.measure import Settings, raise_file_limit

FULL = Settings(rounds=5, idle_rounds=1, seconds=1.0, warmup=0.25, settle=2.0)
QUICK = Settings(rounds=1, idle_rounds=1, seconds=0.15, warmup=0.05, settle=0.1)
OTHERS = ("rates", "spread", "engines")
"""What is measured beside the workloads."""

USERS, QUICK_USERS = 50_000, 60
MESSAGES, QUICK_MESSAGES = 500_000, 5000
QUICK_CONNECTIONS = 40


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [kind.name for kind in KINDS]
    works = [work.name for work in WORKLOADS]
    parser.add_argument("--quick", action="store_true", help="a smoke run of some seconds")
    parser.add_argument("--kinds", metavar="A,B", help=f"only these of {', '.join(names)}")
    parser.add_argument("--workloads", metavar="A,B", help=f"only these of {', '.join([*works, *OTHERS])}")
    parser.add_argument("--rounds", type=int, help="how often each measurement is made")
    parser.add_argument("--users", type=int, help="how many users are spread over three nodes")
    parser.add_argument("--no-install", action="store_true", help="install nothing, skip what is not installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--update-docs", action="store_true", help="update docs/how-to/scale.md")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FILE", help="report an earlier run's JSON")
    args = parser.parse_args(argv)
    for option, known in (("kinds", names), ("workloads", [*works, *OTHERS])):
        wanted = getattr(args, option)
        chosen = known if wanted is None else wanted.split(",")
        unknown = set(chosen) - set(known)
        if unknown:
            parser.error(f"unknown {option}: {', '.join(sorted(unknown))}")
        setattr(args, option, chosen)
    return args


def measure(args: argparse.Namespace, env: Environment) -> dict[str, Any]:
    """Measure, and put everything that is to be known into one dict."""
    settings = QUICK if args.quick else FULL
    if args.rounds:
        settings = replace(settings, rounds=args.rounds)
    notes = ["a quick run: the figures show that everything works, no more"] if args.quick else []
    here = machine()
    if here["load_before"] > 0.5:
        notes.append(f"other programs were running when it began (load {here['load_before']})")
    raise_file_limit()
    works = [work for work in WORKLOADS if work.name in args.workloads]
    if args.quick:
        works = [replace(work, connections=min(work.connections, QUICK_CONNECTIONS)) for work in works]
    missing = {kind: kind.missing(env) for kind in KINDS if kind.name in args.kinds}
    kinds = [kind for kind, why in missing.items() if not why]
    notes += [f"{kind.title} was skipped, {why}" for kind, why in missing.items() if why]
    run = ClusterRun(env, settings)
    if run.pinned:
        count = len(run.pinned[0])
        notes.append(f"all nodes and their engine shared {count} core{'s' * (count > 1)}, what loads them had another")
    began = time.monotonic()
    run.measure(works, kinds)
    users = args.users or (QUICK_USERS if args.quick else USERS)
    ours = [kind for kind in kinds if kind.peer.name == "wse"]
    if "rates" in args.workloads:
        run.measure_rates(ours)
    if "spread" in args.workloads:
        run.measure_spread(ours, users)
    if "engines" in args.workloads:
        run.measure_engines(kinds, QUICK_MESSAGES if args.quick else MESSAGES)
    notes += [f"{where} failed: {problem}" for where, problem in run.problems.items()]
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python bench/cluster.py", *sys.argv[1:]]),
        "took_s": round(time.monotonic() - began, 1),
        "machine": {**here, "load_after": round(os.getloadavg()[0], 2)},
        "versions": versions(env),
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "users": users,
        "notes": notes,
        "medians": run.medians(),
        "samples": run.samples,
        "rates": run.rates,
        "spread": run.spread,
        "engines": run.engines,
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
        results = measure(args, env)
    if args.update_docs and not args.earlier:
        args.json = args.json or BENCH / "cluster.json"
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if args.update_docs:
        update_docs(results, ROOT / "docs" / "how-to" / "scale.md")
    else:
        print(markdown(results))
    return 1 if any(" failed: " in note for note in results["notes"]) else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
