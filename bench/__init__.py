"""Benchmarks of a real daemon on this machine: `make bench`, or `python -m bench --only write`."""

import memoryd  # noqa: F401 - says how torch's threads are to wait, before anything here imports torch
