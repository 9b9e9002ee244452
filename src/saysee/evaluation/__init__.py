"""Evaluation: retrieval measures of a model on a corpus, and localization by attention.

- ``recall``: ranks and measures from vectors.
- ``statistics``: bootstrap and t-intervals.
- ``protocols``: measures of a model on one split of a manifest.
- ``comparison``: several models on several corpora, with paired differences.
- ``table``: tables for the terminal, Markdown, LaTeX and CSV.
- ``cascade``, ``word_errors``: a speech recognizer with CLIP's text encoder, for comparison.
- ``localization``: attention on the objects that words name.
- ``mteb``: models in the tasks of MTEB.
"""
