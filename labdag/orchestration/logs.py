"""What Prefect logs twice, and users need to see once."""

from __future__ import annotations

import logging


def drop_repeated_failures() -> None:
    """Keep out of the log that a task failed which returned a Failed state: Prefect says so again at once."""
    logging.getLogger("prefect.task_runs").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or not record.getMessage().startswith("Task run failed with state: ")
