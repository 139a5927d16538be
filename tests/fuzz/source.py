"""Bytes as a source of choices: what a fuzzer changes in them changes one step of a story, and they never run out."""

from __future__ import annotations

from support import stories


class Source:
    def __init__(self, data):
        self._data = data
        self._at = 0

    @property
    def left(self):
        return len(self._data) - self._at

    def byte(self):
        if self._at < len(self._data):
            self._at += 1
            return self._data[self._at - 1]
        return 0

    def pick(self, options):
        return options[self.byte() % len(options)]

    def take(self, size):
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self):
        return self.take(max(self.left, 0))

    def value(self, depth=2):
        kind = self.byte() % 6 if depth else 5
        if kind == 0:
            return [self.value(depth - 1) for _ in range(self.byte() % 4)]
        if kind == 1:
            return {self.pick(stories.KEYS): self.value(depth - 1) for _ in range(self.byte() % 4)}
        return self.pick(stories.SCALARS)

    def message(self):
        """A message: nearly well-formed, or one that fits a state."""
        match self.byte() % 6:
            case 0:
                hi = {"identity": self.pick(stories.CIDS), "meta": self.pick([{}, None, 1])}
                return "~wse:hi", {**hi, "ext": self.pick([None, *stories.OFFERS])}, None
            case 1:
                return self.pick(["~wse:response", "~wse:response-err"]), self.error(), self.pick([1, 2, 3])
            case 2:
                return self.pick(stories.PROCEDURES), self.value(), self.pick([1, 2, "s"])
            case 3:
                return self.pick(["~wse:challenge", "~wse:welcome", "chat"]), self.value(), None
            case _:
                return self.pick(stories.TYPES), self.value(), self.pick(stories.STAMPS)

    def error(self):
        return {key: self.value() for key in ("code", "details", "message") if self.byte() % 2}

    def raw(self):
        """What no protocol has packed, or has packed and something has changed."""
        match self.byte() % 4:
            case 0:
                return self.pick(stories.HOSTILE)
            case 1:
                return self.take(self.byte() % 32)
            case 2:
                return self.take(self.byte() % 32).decode(errors="replace")
            case _:
                protocol = self.pick([stories.JSON, stories.MSGPACK])
                try:
                    data = bytearray(protocol.codec.encode(self.message()))
                except Exception:  # bytes are no dictionary keys in JSON
                    return b""
                data[self.byte() % len(data)] = self.byte()
                return bytes(data)
