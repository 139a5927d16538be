"""Programs of a run: JSON commands on their standard input, JSON answers on their standard output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Child:
    """A program of this directory in a process of its own.

    Args:
        program: Its file.
        settings: What it is started with.
        errors: The file for its standard error.
        source: A directory that has another version of the package.
    """

    def __init__(self, program, settings, errors, source=None):
        self._program = HERE / program
        self._settings = json.dumps(settings)
        self._errors = errors
        self._environment = dict(os.environ)
        self._environment.pop("COVERAGE_PROCESS_CONFIG", None)  # it would be slower by half
        if source is not None:
            self._environment["PYTHONPATH"] = str(source)
        self._number = 0
        self._waiting = {}

    async def start(self, within=30):
        """Start it; the value that it tells when it is ready."""
        ready = self._waiting[0] = asyncio.get_running_loop().create_future()
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                self._program,
                self._settings,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                limit=1 << 24,
            )
        self._reading = asyncio.ensure_future(self._read())
        async with asyncio.timeout(within):
            return await ready

    async def _read(self):
        async for line in self.process.stdout:
            number, answer = json.loads(line)
            waiting = self._waiting.pop(number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("the program has ended"))
                waiting.exception()  # perhaps nobody asks for it any more

    def tell(self, command, **args):
        """Give a command, without waiting for the answer."""
        self._number += 1
        self.process.stdin.write((json.dumps([self._number, command, args]) + "\n").encode())

    async def ask(self, command, within=30, **args):
        """Give a command; the answer."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting[self._number + 1] = answer
        self.tell(command, **args)
        async with asyncio.timeout(within):
            result = await answer
        if isinstance(result, dict) and "exception" in result:
            raise RuntimeError(f"{self._program} cannot {command}: {result['exception']}")
        return result

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    async def kill(self):
        self.process.kill()
        await self.process.wait()

    async def stop(self, within=20):
        """Ask it to end; its exit status, or None if it has to be killed."""
        self.process.stdin.close()
        try:
            async with asyncio.timeout(within):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            return None

    def abandon(self):
        """End it at once, whatever its state."""
        if getattr(self, "process", None) is not None and self.process.returncode is None:
            self.thaw()
            self.process.kill()
