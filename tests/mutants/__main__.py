"""`make mutants`: changes one module in many small ways, and shows which changes no test notices.

python -m mutants src/wse/core/cluster/liveness.py                            all fast tests of one process
python -m mutants src/wse/core/cluster/liveness.py tests/unit/test_cluster.py only these tests
python -m mutants --least 90 src/wse/core/cluster/liveness.py                 fails if fewer per cent are noticed

mutmut makes the changes and runs, for each, the tests that reach the changed function. Three kinds of change are added
to its own, because state machines need them: a statement is left out, a condition is inverted, and an operand of `and`
or `or` is dropped. Texts are not changed.
Decorated functions (properties) and the bodies of classes are not changed either: mutmut cannot.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tomllib
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from mutmut.mutation import mutators

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".artifacts" / "mutants"
TESTS = ("tests/unit", "tests/property")
# These read the source, or start processes, which load it unchanged.
UNFIT = ("architecture", "autobahn", "bench", "cli", "examples")
ORDER = (cst.LessThan, cst.LessThanEqual, cst.GreaterThan, cst.GreaterThanEqual)
NOTICED = ("killed", "timeout", "segfault")


def leave_out(node):
    """A statement does nothing; a docstring already does nothing."""
    if not (isinstance(node, cst.Expr) and isinstance(node.value, cst.BaseString)):
        yield cst.Pass()


def invert(node):
    """A condition is inverted, unless mutmut inverts its operator."""
    test = node.test
    if isinstance(test, cst.UnaryOperation):
        return
    if isinstance(test, cst.Comparison) and not isinstance(test.comparisons[0].operator, ORDER):
        return
    parenthesized = test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), parenthesized))


def drop_operand(node):
    """Of two operands of `and` and `or`, one decides."""
    yield from (node.left, node.right)


def assign(node):
    """What mutmut does, but not None for a bool: that is one of the two."""
    if not m.matches(node.value, m.Name("True") | m.Name("False")):
        yield from mutators.operator_assignment(node)


def change_arguments(node):
    """What mutmut does, but not to casts, which exist for type checkers only."""
    if not m.matches(node.func, m.Attribute(attr=m.Name("cast"))):
        yield from mutators.operator_arg_removal(node)


def operators():
    ours = {
        mutators.operator_string: None,
        mutators.operator_assignment: assign,
        mutators.operator_arg_removal: change_arguments,
    }
    pairs = [(kind, ours.get(operator, operator)) for kind, operator in mutators.mutation_operators]
    statements = (cst.Assign, cst.AugAssign, cst.Expr, cst.Return, cst.Raise, cst.Del)
    return [
        *(pair for pair in pairs if pair[1] is not None),
        *((kind, leave_out) for kind in statements),
        (cst.If, invert),
        (cst.While, invert),
        (cst.BooleanOperation, drop_operand),
    ]


def prepare(module, tests):
    """The directory that mutmut works in: the project, with a configuration for this run."""
    work = WORK / ".".join(Path(module).with_suffix("").parts[1:])
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    beside = ["spec"]
    for name in ("src", "tests", *beside):
        (work / name).symlink_to(ROOT / name)
    ignored = [f"--ignore=tests/unit/test_{name}.py" for name in UNFIT]
    settings = {
        "source_paths": ["src"],
        "only_mutate": [module],
        "also_copy": beside,
        "pytest_add_cli_args": ["-p", "no:cacheprovider", *ignored],
        "pytest_add_cli_args_test_selection": tests,
        "timeout_multiplier": 5,  # of the time that the tests take; a loop without end takes all of it
        "use_git_change_detection": False,
        "track_dependencies": False,
    }
    assert "mutmut" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    lines = [
        f"{name} = {str(value).lower() if value in (True, False) else value!r}" for name, value in settings.items()
    ]
    text = (ROOT / "pyproject.toml").read_text() + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    (work / "pyproject.toml").write_text(text)
    return work


def report(module, least):
    from mutmut.__main__ import collect_source_file_mutation_data
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    mutants, _ = collect_source_file_mutation_data(mutant_names=())
    unnoticed = [(data, name) for data, name, code in mutants if status_by_exit_code[code] not in NOTICED]
    for data, name in unnoticed:
        print(f"\n{status_by_exit_code[data.exit_code_by_key[name]]}: {name}")
        print("\n".join(line for line in get_diff_for_mutant(name, path=data.path).splitlines()[2:]))
    share = 100 * (1 - len(unnoticed) / len(mutants))
    print(f"\n{module}: {len(mutants) - len(unnoticed)} of {len(mutants)} changes noticed, {share:.1f} %")
    return int(share < least)


def main():
    parser = argparse.ArgumentParser(prog="python -m mutants")
    parser.add_argument("module", help="the path of a module, like src/wse/core/cluster/liveness.py")
    parser.add_argument("tests", nargs="*", help=f"files of tests; {' '.join(TESTS)} otherwise")
    parser.add_argument("--least", type=float, default=0, help="per cent of the changes that must be noticed")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    os.chdir(prepare(args.module, args.tests or list(TESTS)))
    mutators.mutation_operators[:] = operators()
    from mutmut import __main__ as mutmut

    if not sys.stdout.isatty():  # it would print a line for each change
        mutmut.print_stats = mutmut.print_status = lambda *args, **kwargs: None
    mutmut._run((), args.processes)
    sys.exit(report(args.module, args.least))


if __name__ == "__main__":
    main()
