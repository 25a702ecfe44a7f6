"""Charts and pictures as files; imports no torch."""
