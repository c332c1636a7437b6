"""One run from its beginning to its report, in this process or another."""
