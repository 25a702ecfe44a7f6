"""Optimisers over named parameter groups, and learning-rate schedules per optimiser step."""

from hardpix.optim.optimizer import SGD, Adam, AdamW
from hardpix.optim.scheduler import Constant, Plateau, Poly

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Plateau", "Poly"]
