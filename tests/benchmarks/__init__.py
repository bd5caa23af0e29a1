"""What it costs: each figure beside its limit, from the same interleaved run. `make bench`; no test asserts a time."""
