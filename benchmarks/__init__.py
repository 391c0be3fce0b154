"""The same work done by several libraries, side by side: `python -m benchmarks`."""
