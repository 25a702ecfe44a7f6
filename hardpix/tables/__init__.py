"""Tables of run records and published numbers; imports no torch."""
