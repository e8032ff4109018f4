"""Benchmarks: each is a script that measures ours and a peer in turns; docs/benchmarks.md says how to run them."""
