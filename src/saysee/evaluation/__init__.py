"""Evaluation: retrieval measures of a model on a corpus, and localization by attention.

- ``recall``: ranks and measures from vectors.
- ``statistics``: bootstrap and t-intervals.
- ``protocols``: measures of a model on one split of a manifest.
- ``cascade``, ``word_errors``: a speech recognizer with CLIP's text encoder, for comparison.
- ``localization``: attention on the objects that words name.
- ``mteb``: models in the tasks of MTEB.
"""
