"""An HTTP API for publishing, for programs without a client of their own: curl, cron, PHP.

    POST /api/send       {"cid": ..., "type": ..., "payload": ...}
    POST /api/broadcast  {"type": ..., "payload": ...}
    POST /api/room       {"room": ..., "type": ..., "payload": ...}
    POST /api/drop       {"cid": ...}

`openapi.json` describes it, and is served beside it.
"""

from __future__ import annotations

from wse.http_api.api import HttpApi

__all__ = ["HttpApi"]
