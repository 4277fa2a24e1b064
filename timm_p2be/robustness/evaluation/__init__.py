"""Benchmarks of corruptions and attacks: what they measure, their result files and reports."""
