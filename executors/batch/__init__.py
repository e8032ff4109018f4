"""Batch systems: how each says a site file's words, what it says of jobs, and what jobs take along and leave."""
