"""Benchmarks of a real daemon on this machine: `make bench`, or `python -m bench --only write`."""
