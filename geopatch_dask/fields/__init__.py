"""Lazy inputs: each field is picklable configuration, opened where it is read."""
