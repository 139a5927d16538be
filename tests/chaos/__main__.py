"""`make chaos`: a cluster under faults, whose counts are compared with what is promised.

make chaos                                                    every nemesis on both engines: more than an hour
make chaos ARGS="--engine nats --nemesis kill cut,flap+kill"  some of them
make chaos ARGS="--nemesis kill --old v1.2"                   the first node runs that version of the package

The logs of a run are in .artifacts/chaos/; a table at the end says what was found. It fails if there was a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

from chaos.nemeses import NEMESES, SCENARIOS, Scenario
from chaos.run import Options, Run
from wse.brokers.reconnecting import REGISTER_VERSION

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".artifacts" / "chaos"
ENGINES = ("nats", "valkey")


def source_of(reference):
    """The directory with the package as it was at that tag or commit."""
    commit = subprocess.run(
        ["git", "rev-parse", f"{reference}^{{commit}}"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    directory = WORK / "old" / commit
    if not directory.exists():
        directory.mkdir(parents=True)
        archive = subprocess.Popen(["git", "archive", commit, "src"], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", directory], stdin=archive.stdout, check=True)
        archive.wait()
    source = directory / "src"
    if register_version(source) != REGISTER_VERSION:
        sys.exit(
            f"{reference} has another format of the register. Its nodes keep a register of their own, so joined and "
            "left cannot be compared; docs/explanation/cluster.md explains this."
        )
    return str(source)


def register_version(source):
    """The version of the register's format in that package; 1 if it does not say."""
    module = source / "wse" / "brokers" / "reconnecting.py"
    found = re.search(r"(?m)^REGISTER_VERSION = (\d+)$", module.read_text()) if module.exists() else None
    return int(found[1]) if found else 1


def main():
    nemeses = "\n".join(f"  {name:<16}{nemesis.make.__doc__ or ''}" for name, nemesis in NEMESES.items())
    parser = argparse.ArgumentParser(
        prog="make chaos", epilog=f"nemeses:\n{nemeses}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--nemesis", nargs="+", default=SCENARIOS, help=Scenario.__doc__.partition("text:")[2])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rate", type=float, default=40.0, help="messages a second that clients send")
    parser.add_argument("--users", type=int, default=20, help="half of them stay, the others come and go")
    parser.add_argument("--old", metavar="REF", help="a tag or commit whose package the first node runs")
    args = parser.parse_args()
    source = source_of(args.old) if args.old else None
    users = (("stable", args.users // 2), ("multi", args.users * 3 // 10), ("hop", args.users // 5))
    results = []
    for engine in args.engine:
        for text in args.nemesis:
            scenario = Scenario(text)
            scenario.check()
            if scenario.persists and engine == "nats":
                continue  # its register is in memory
            options = Options(engine, scenario, args.seconds, args.seed, args.nodes, args.rate, users, source)
            directory = WORK / options.name.replace(" ", "-").replace("/", "-")
            report = asyncio.run(Run(options, directory).run())
            results.append((options, report))
            show(options, report)
    table(results)
    sys.exit(any(report.violations for _, report in results))


def show(options, report):
    print(f"{time.strftime('%H:%M:%S')} {options.name}: {len(report.violations)} violations", flush=True)
    for text in report.violations:
        print(f"    {text}", flush=True)
    for text in report.unavoidable:
        print(f"    could not be avoided: {text}", flush=True)


def table(results):
    columns = [*dict.fromkeys(name for _, report in results for name in report.figures)]
    rows = [["run", *columns, "unavoidable", "violations"]]
    for options, report in results:
        figures = [str(report.figures.get(name, "")) for name in columns]
        rows.append([options.name, *figures, str(len(report.unavoidable)), str(len(report.violations))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
