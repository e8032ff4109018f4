"""Servers as the blocks of a Parsl executor."""
