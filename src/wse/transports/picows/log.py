"""Where picows logs to."""

from __future__ import annotations

import logging
from typing import Any


class QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """picows logs a peer's faults as errors; here they are events of the application, and reported as such."""

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


logger = QuietLogger(logging.getLogger("wse.picows"))
