"""Figures of runs: what they show, computed."""
