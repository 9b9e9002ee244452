"""What a user keeps: encoders, fusion encoder, retriever and processor. It runs without the rest of the package."""

from saysee.model.retriever import SpeechImageModel as SpeechImageModel
