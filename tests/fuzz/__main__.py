"""`make fuzz`: every target for its share of the time, on all that atheris finds worth trying.

python -m fuzz                        all targets, 600 seconds together, at least 1,000,000 inputs
python -m fuzz --seconds 60 --least 0 server client
python -m fuzz --input FILE server    one input again, as after a crash
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOUND = ROOT / ".artifacts" / "fuzz"
NAMES = ("unpack", "server", "client", "resume", "calls", "assembly")
SHARES = {"unpack": 3, "server": 3, "client": 2, "resume": 2, "calls": 3, "assembly": 2}


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("targets", nargs="*", choices=[[], *NAMES], metavar="target", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--least", type=int, default=1_000_000, help="inputs for all targets together")
    parser.add_argument("--input", type=Path, help="run the target on this file only")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.targets or list(NAMES)
    if args.input is not None:
        from fuzz.targets import TARGETS

        for name in names:
            TARGETS[name](args.input.read_bytes())
    elif args.child is not None:
        run(names[0], args.seconds, args.child)
    else:
        sys.exit(run_all(names, args.seconds, args.least))


def run_all(names, seconds, least):
    FOUND.mkdir(parents=True, exist_ok=True)
    shares = sum(SHARES[name] for name in names)
    total, failed = 0, False
    for name in names:
        with tempfile.TemporaryDirectory() as corpus:
            share = seconds * SHARES[name] / shares
            command = [sys.executable, "-m", "fuzz", name, "--seconds", str(share), "--child", corpus]
            child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        output = child.stdout + child.stderr
        done = re.search(r"number_of_executed_units: (\d+)", output)
        total += int(done[1]) if done else 0
        print(f"{name:10} {int(done[1]) if done else 0:>10,} inputs in {share:.0f} s", flush=True)
        if child.returncode:
            failed = True
            print(output[-6000:])
            for path in re.findall(r"Test unit written to (\S+)", output):
                again = f"{os.path.relpath(sys.executable)} -m fuzz --input {path} {name}"
                print(f"to see it again:\n  PYTHONPATH=tests {again}")
    print(f"{'together':10} {total:>10,} inputs")
    if total < least:
        print(f"fewer than {least:,}")
    return int(failed or total < least)


def run(name, seconds, corpus):
    """One target in this process, which atheris ends."""
    if importlib.util.find_spec("atheris") is None:
        run_plain(name, seconds)
        return
    import atheris

    with atheris.instrument_imports(include=["wse"]):
        from fuzz.targets import TARGETS, seeds  # and with them wse, all of which is watched
    for index, data in enumerate(seeds(name)):
        (corpus / f"seed-{index}").write_bytes(data)
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-artifact_prefix={os.path.relpath(FOUND)}/{name}-",
        "-print_final_stats=1",
        "-max_len=400",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-verbosity=0",
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


def run_plain(name, seconds):
    from fuzz.drivers import FoundError, plain
    from fuzz.targets import TARGETS, seeds

    print("atheris is not installed here: plain mutation of the seeds instead")
    try:
        done = plain(TARGETS[name], seeds(name), seconds=seconds, seed=None)
    except FoundError as exc:
        path = FOUND / f"{name}-crash"
        path.write_bytes(exc.data)
        print(f"number_of_executed_units: {exc.done}\nTest unit written to {os.path.relpath(path)}")
        raise
    print(f"number_of_executed_units: {done}")


if __name__ == "__main__":
    main()
