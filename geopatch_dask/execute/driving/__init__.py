"""What is started, repeated and given up, and where it runs."""
