"""What is stored, compared with what was planned; what is wrong, and what mends it."""
