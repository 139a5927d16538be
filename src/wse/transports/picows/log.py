"""The logger for picows."""

from __future__ import annotations

import logging
from typing import Any


class QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs at DEBUG: picows logs a peer's faults as errors, and WSE reports them to the application as events."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs["extra"] = {"kind": "transport", **kwargs.get("extra", {})}
        return msg, kwargs

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


logger = QuietLogger(logging.getLogger("wse.picows"))
