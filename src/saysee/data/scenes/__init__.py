"""The embedded corpus: drawn scenes with spoken captions, so that everything in SaySee runs offline.

Each image shows two to four objects, of which five speakers each say something true. The ground truth is kept: the box
of each object, the time of each word, and which objects a word describes.

From image to speech: ``world`` (objects, scenes, what is true of them), ``outlines`` (geometry of the shapes),
``planning`` (the scenes of a corpus: splits, novel pairs, hard twins), ``drawing`` (scene to image), ``captions``
(what is said of a scene), ``grammar`` (that in sentences of a
language), ``speakers``, ``speech`` (sentence to samples), ``making`` (one image with its clips), ``corpus``
(the whole folder).
"""
