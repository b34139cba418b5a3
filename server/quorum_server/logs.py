"""Logging of the server's processes, its engine included: to standard error, one line a record.

    level  --configure_logging-->  the root logger

Called by what owns a process; no library of this project does it for itself. Knows nothing of what is logged.
"""

from __future__ import annotations

import logging.config


def configure_logging(level: str) -> None:
    """Log records of `level` (debug, info, warning, error) and above."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            # Each request to a model hub is news to nobody.
            "loggers": {"httpx": {"level": "WARNING"}},
        }
    )
