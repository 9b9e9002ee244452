"""The embedded corpus: drawn scenes with spoken captions, so that everything in SaySee runs offline.

Each image shows two to four objects, of which five speakers each say something true. The ground truth is kept: the box
of each object, the time of each word, and which objects a word describes.
"""
