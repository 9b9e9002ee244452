"""Workshops outside the package."""
