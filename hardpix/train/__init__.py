"""Train one run: build, trainer, checkpoints, loggers, run directory."""
