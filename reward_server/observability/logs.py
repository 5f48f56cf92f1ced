"""The server's log: as text for a person, or as JSON with one event per line for log collectors.

Owns the two formats, and the run, step and group of the call in which an event happens. Knows nothing of what is
logged. No code of ours logs a prompt, a completion or a token; a scorer's own exception is logged as it is, and may
quote them.

    {"time": "2026-11-24T22:53:10.123Z", "level": "warning", "logger": "reward_server", "process": 1, "message": "…",
     "run_id": "…", "step": 12, "group_id": "…", "exception": "Traceback …"}
"""

from __future__ import annotations

import datetime
import json
import logging
from contextvars import ContextVar
from typing import Any

call: ContextVar[dict[str, Any] | None] = ContextVar("call", default=None)
"""run_id, step and group_id of the call that the current task serves; None outside of a call."""

FORMATS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(message)s"


def set_up(kind: str, level: str) -> None:
    """Logs to standard error from now on: our events from `level` on, and the warnings of other libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if kind == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("reward_server").setLevel(level.upper())


class JSONFormatter(logging.Formatter):
    """One JSON object per line, with the call's names and the fields that an event adds by `extra={"fields": {…}}`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        event: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **(call.get() or {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)
