"""How well retrieval works, and where the model looks.

- ``recall``: ranks and measures from vectors alone.
- ``protocols``: a model and a manifest in, the measures of a split out.
- ``attention``: maps of frames over patches, and how much of them falls on the object spoken of.

Nothing here knows how a model was trained.
"""
