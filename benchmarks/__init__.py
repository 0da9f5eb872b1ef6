"""Benchmarks of mapjax: each is a script with an opponent in the same run."""
