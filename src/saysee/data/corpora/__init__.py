"""Readers of corpora as they lie on disk: each writes a manifest and tells what the copy lacks.

From files to rows: ``finding`` (files by name, in whatever layout a copy has) · ``flickr8k``, ``spokencoco``,
``places``, ``folder`` (which clip speaks of which picture, in which split) · ``preparing`` (what is missing, empty or
extra; the limit; the manifest). Data sets of the hub hold files within tables or tars: ``hf`` (which files, which
split) reads them by ``tables`` and ``webdataset`` into ``records``, and ends in ``preparing`` too.
"""
