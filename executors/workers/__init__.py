"""Parsl's executor of workers, its worker pool and its interchange, which may be ended and killed at any time."""
