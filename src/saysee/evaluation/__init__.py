"""Evaluation: retrieval measures of a model on a corpus, and localization by attention."""
