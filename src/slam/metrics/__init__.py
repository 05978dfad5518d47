"""Metrics: a function each, from scores or sound to numbers with their intervals."""
