"""The embedded corpus: drawn scenes with spoken captions, so that everything in SaySee runs offline.

Each picture shows two to four objects that never hide each other; five speakers each say something true of it, in real
synthesised speech. The truth is kept: the box of each object, the time of each word, and which word speaks of which
object.

From what is seen to what is heard: ``world`` (objects, scenes, what is true of them) · ``outlines`` (the shapes'
geometry) · ``planning`` (which scenes make a corpus: splits, novel pairs, hard twins) · ``drawing`` (scene to picture)
· ``captions`` (scene to sentences) · ``speakers`` (who says them) · ``speech`` (sentence to samples) · ``making`` (one
image with its clips) · ``corpus`` (the whole folder).
"""
