"""Where a target's inputs come from: atheris, which looks for those that reach new code, or plain mutation of seeds."""

from __future__ import annotations

import random
import time


class FoundError(Exception):
    """An input for which a target raised; its cause is what it raised."""

    def __init__(self, data, done):
        super().__init__(f"found after {done} inputs: {data!r}")
        self.data = data
        self.done = done


def plain(target, seeds, *, inputs=None, seconds=None, seed=0):
    """Run a target on the seeds and on changed ones; returns how many inputs that were.

    Raises:
        FoundError: The target raised.
    """
    chance = random.Random(seed)
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    while (inputs is None or done < inputs) and (end is None or time.monotonic() < end):
        data = seeds[done] if done < len(seeds) else mutated(chance, seeds)
        done += 1
        try:
            target(data)
        except Exception as exc:
            raise FoundError(data, done) from exc
    return done


def mutated(chance, seeds):
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[at:at] = chance.randbytes(chance.randrange(1, 12))
            case 1:
                del data[at : at + chance.randrange(1, 6)]
            case 2:
                other = chance.choice(seeds)
                data[at:] = other[chance.randrange(len(other) + 1) :]
            case _:
                data[at : at + 1] = chance.randbytes(1)
    return bytes(data)
