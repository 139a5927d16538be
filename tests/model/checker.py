"""A small explicit-state model checker: it visits every state that a model can reach, the nearest ones first.

A model is any object with four methods; see `Model`. Its states are hashable, and two paths that lead to the same
state are followed once. The model may hold what cannot be copied, such as coroutines that are under way: a state is
reached again by making a new model and taking the same steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

Action = tuple[object, ...]


class Model(Protocol):
    def actions(self) -> list[Action]:
        """What can happen next."""

    def take(self, action: Action) -> None:
        """Let it happen."""

    def state(self) -> Hashable:
        """All that the future depends on, and what `problems` has to remember."""

    def problems(self) -> list[str]:
        """What is wrong. The model is not used after this: it may run on until it is quiet, and look then."""


@dataclass(frozen=True)
class Result:
    """What an exploration has found.

    Attributes:
        states: How many different states were visited.
        steps: How many steps led to them.
        depth: How many steps the longest of the shortest paths has.
        complete: Whether these are all states that there are.
        problems: What is wrong in the first faulty state.
        path: A shortest path to that state.
    """

    states: int
    steps: int
    depth: int
    complete: bool
    problems: tuple[str, ...] = ()
    path: tuple[Action, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.states} states, {self.steps} steps, depth {self.depth}"]
        lines += ["" if self.complete else "(not all)", *self.problems, *map(str, self.path)]
        return "\n  ".join(filter(None, lines))


def explore(make: Callable[[], Model], most: int = 1_000_000_000) -> Result:
    """Visit the states that a model can reach, until one has a problem or there were `most` of them."""

    def reach(path: tuple[Action, ...]) -> Model:
        model = make()
        for action in path:
            model.take(action)
        return model

    start = make()
    seen = {hash(start.state())}  # 64 bits of each state: of a million states, none is missed by chance
    waiting: deque[tuple[tuple[Action, ...], list[Action]]] = deque([((), start.actions())])
    steps = depth = 0
    while waiting:
        path, actions = waiting.popleft()
        for action in actions:
            steps += 1
            longer = (*path, action)
            model = reach(longer)
            state = hash(model.state())
            if state in seen:
                continue
            seen.add(state)
            depth = len(longer)
            following = model.actions()
            if problems := model.problems():
                return Result(len(seen), steps, depth, False, tuple(problems), longer)
            if len(seen) >= most:
                return Result(len(seen), steps, depth, False)
            waiting.append((longer, following))
    return Result(len(seen), steps, depth, True)
