"""The server's log as a person reads it, or as JSON, a line an event, for what collects logs.

Owns the two formats, and the names of the call in which an event happens: run, step and group. Knows nothing of what
is logged; no caller of it logs a prompt, a completion or a token. (A scorer's own exception is logged as it is, and may
quote what it was given.)

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
"""run_id, step and group_id of the call that this task serves; None outside of one."""

FORMATS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(message)s"


def set_up(kind: str, level: str) -> None:
    """Logs to standard error from now on: ours from `level` on, others' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if kind == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("reward_server").setLevel(level.upper())


class JSONFormatter(logging.Formatter):
    """One object a line. What an event brings as `extra={"fields": {…}}` is in it, and the call's names."""

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
