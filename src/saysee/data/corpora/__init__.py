"""Readers of corpora as they are on disk or on the hub: each writes a manifest and reports what is missing.

``flickr8k``, ``spokencoco``, ``places`` and ``folder`` read which clip describes which image in which split, and
``finding`` finds the files by name in any layout. ``hub`` reads data sets that hold their files inside: ``hub_files``
finds their files, ``hub_rows`` reads tables, ``hub_tars`` tars, ``hub_pairs`` tables of queries, corpus and pairs.
All end in ``preparing``: what is missing, empty or extra, the limit, the manifest.
"""
