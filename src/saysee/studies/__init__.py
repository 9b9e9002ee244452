"""Whole questions answered: each study runs what it needs and ends in a report."""
