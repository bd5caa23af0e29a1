"""Loggers whose least level may change while the process runs: structlog's own are made for one level."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import structlog

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Least:
    level = logging.INFO


def set_least(level: str) -> None:
    """Log from this level on."""
    _Least.level = LEVELS[level]


class BoundLogger(structlog.BoundLoggerBase):
    """A logger of events with fields. Below the least level a call costs a comparison."""

    def debug(self, event: str, **fields: Any) -> None:
        """Log at debug."""
        if _Least.level <= logging.DEBUG:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log at info."""
        if _Least.level <= logging.INFO:
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log at warning."""
        if _Least.level <= logging.WARNING:
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log at error."""
        if _Least.level <= logging.ERROR:
            self._proxy_to_logger("error", event, **fields)

    def critical(self, event: str, **fields: Any) -> None:
        """Log at critical, whatever the least level is: the process ends of it."""
        self._proxy_to_logger("critical", event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log at error, with the exception that is being handled."""
        self.error(event, **{"exc_info": True, **fields})
