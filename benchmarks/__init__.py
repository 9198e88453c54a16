"""Benchmarks: one question each, as `python -m benchmarks.NAME [--json] [--quick]`."""
