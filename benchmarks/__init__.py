"""Each is run as `python -m benchmarks.NAME` and prints a table, then one JSON document as its last line."""
