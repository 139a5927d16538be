"""Publishers from outside of a cluster under chaos: asynchronous, blocking in threads, and blocking after a fork.

python publishers.py JSON-OF-SETTINGS
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time

from wse import BlockingPublisher, Publisher, WseError

settings = json.loads(sys.argv[1])
now = time.monotonic
end = now() + settings["seconds"]
log_file = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def log(*what):
    os.write(log_file, (json.dumps([round(now(), 4), *what]) + "\n").encode())


def publish(name, publisher, rate):
    chance = random.Random(name)
    n = 0
    while now() < end:
        n += 1
        to, start, result = chance.choice(settings["users"]), now(), "ok"
        try:
            publisher.send(to, "m", {"s": name, "n": n})
        except WseError as exc:
            result = str(exc.code)
        except BaseException as exc:
            result = f"exception {exc!r}"
        log("published", name, to, n, start, result)
        time.sleep(1 / rate)


async def publish_and_flush(name, rate):
    """Messages in batches of five; each batch is published when `flush` has returned."""
    chance = random.Random(name)
    n = 0
    while now() < end:
        try:
            async with Publisher(settings["broker"]) as publisher:
                while now() < end:
                    batch, result = [], "ok"
                    for _ in range(5):
                        n += 1
                        to, start = chance.choice(settings["users"]), now()
                        try:
                            publisher.send(to, "m", {"s": name, "n": n})
                            batch.append((to, n, start))
                        except WseError as exc:
                            log("published", name, to, n, start, str(exc.code))
                        await asyncio.sleep(1 / rate)
                    try:
                        await publisher.flush()
                    except WseError as exc:
                        result = str(exc.code)
                    for one in batch:
                        log("published", name, *one, result)
        except WseError as exc:
            log("away", name, str(exc.code))
            await asyncio.sleep(0.5)
        except BaseException as exc:
            log("exception", name, repr(exc))
            await asyncio.sleep(0.5)


def main():
    publisher = BlockingPublisher(settings["broker"])
    threads = [threading.Thread(target=publish, args=(f"blocking{i}", publisher, 5)) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)  # until the threads have used it
    child = os.fork()
    if child == 0:
        try:
            publish("forked", publisher, 5)
        finally:
            os._exit(0)
    asyncio.run(publish_and_flush("asynchronous", 10))
    for thread in threads:
        thread.join()
    publisher.close()
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
