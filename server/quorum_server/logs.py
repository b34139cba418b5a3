"""Logging of the server's processes, its engine included: to standard error, one JSON object a record.

    level  --configure_logging-->  the root logger

    {"time": "2026-01-31T12:00:00.000000+00:00", "level": "INFO", "logger": "…", "process": "MainProcess",
     "message": "…", "request_id": "…" (while a request is answered), "exc_info": "…" (of an exception), …}

Called by what owns a process; no library of this project does it for itself. Knows nothing of what is logged.
"""

from __future__ import annotations

import logging.config

from quorum_server.request_record import current_record

_FIELDS = {"levelname": "level", "name": "logger", "processName": "process", "timestamp": "time"}


class RequestIdFilter(logging.Filter):
    """Puts the id of the request that is being answered on every record; keeps them all."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class."""
        request = current_record()
        if request is not None:
            record.request_id = request.request_id
        return True


def configure_logging(level: str) -> None:
    """Log records of `level` (debug, info, warning, error) and above."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "format": ["levelname", "name", "processName", "message"],
                    "rename_fields": _FIELDS,
                    "timestamp": True,
                }
            },
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["request_id"]},
            },
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            # Each request to a model hub is news to nobody.
            "loggers": {"httpx": {"level": "WARNING"}},
        }
    )
