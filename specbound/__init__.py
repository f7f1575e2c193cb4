"""specbound."""
