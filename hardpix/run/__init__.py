"""The only place that knows Hydra, the Trainer, loggers and the file system. Modules are imported one by one,
so that a question about the configuration never waits for torch."""
