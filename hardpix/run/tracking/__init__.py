"""Where a run's numbers go: a CSV file always, Weights & Biases when asked."""

from hardpix.run.tracking.csv_logger import MetricsCSV
from hardpix.run.tracking.loggers import Identity, build_loggers, close, connect, has_dashboard, log_results

__all__ = ["Identity", "MetricsCSV", "build_loggers", "close", "connect", "has_dashboard", "log_results"]
