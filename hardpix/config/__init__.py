"""Compose, validate and explain configurations; imports no torch."""
