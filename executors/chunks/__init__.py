"""coffea's chunks: they know their pool, are kept where they are finished, and say in a sentence why they failed."""
