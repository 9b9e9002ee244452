"""Readers of corpora as they are on disk or on the hub: each writes a manifest and reports what is missing.

All end in ``preparing``: what is missing, empty or extra, the limit, the manifest.
"""
