"""Synthetic rooms with exact geometry and known hardness."""
