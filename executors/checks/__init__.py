"""What a site's batch system, nodes, ports and servers of others think of it before a run."""
