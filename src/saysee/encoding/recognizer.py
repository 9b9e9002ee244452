"""Speech recognition: clips to texts. Text that is recognized where nobody speaks is suppressed, and reported.

Whisper runs in faster-whisper (CTranslate2; extra ``asr``), recognizers with CTC in transformers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saysee.encoding.sides import Kind, waveform_of
from saysee.encoding.texts import TextSide
from saysee.errors import CheckpointError, MediaError, SaySeeError, extra_needed
from saysee.media.audio import MAX_SECONDS, SAMPLE_RATE
from saysee.media.source import printable
from saysee.model.pretrained.weights import first_line, read_config

NO_SPEECH = 0.6
UNSURE = -1.0
"""Text of a segment is suppressed if Whisper's probability of no speech is above the first and the mean log-probability
of its tokens is below the second: the rule and the values of arXiv 2212.04356, section 4.5."""

_OPENAI = "openai/whisper-"  # the hub name of a size in the form of transformers
_FIX = "give a size of Whisper such as small, one converted by ct2-transformers-converter, or a recognizer with CTC"


class Word(NamedTuple):
    """A word of a clip, with its times in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """What was recognized in a clip.

    Attributes:
        text: empty if nothing was heard.
        language: that was spoken, as a tag such as "en"; None if the recognizer does not know.
        suppressed: what the recognizer wrote where it heard no speech; not part of ``text``.
        seconds: length of the clip.
        words: those of ``text`` with their times, if asked for.
    """

    text: str
    language: str | None = None
    suppressed: str = ""
    seconds: float = 0.0
    words: tuple[Word, ...] = ()


class SpeechRecognizer:
    """A Whisper, or a recognizer with CTC (wav2vec 2.0, HuBERT, WavLM, …). May be used by several threads at once.

    The text of a clip does not depend on other clips: tokens are not sampled, and no text is carried from one window of
    30 seconds to the next.

    Args:
        place: size of a Whisper, such as "small" or "tiny.en"; or folder or hub name of a Whisper in the form of
            CTranslate2, or of a recognizer with CTC in that of transformers. The hub is asked only for what is not on
            this machine.
        language: the spoken language, as a tag such as "en"; None detects it in each clip.

    Raises CheckpointError if there is no recognizer at that place, MissingExtraError if Whisper needs the extra "asr",
    SaySeeError if it does not know the language.
    """

    def __init__(
        self, place: str | os.PathLike[str], *, language: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.name, kind = os.fspath(place), torch.device(device).type
        self._recognizer = _Whisper(self.name, kind) if _is_whisper(self.name) else _Ctc(self.name, kind)
        known = self._recognizer.languages
        if language is not None and language not in known:
            fix = f"it knows {', '.join(sorted(known))}" if known else "it has one language; remove --language"
            raise SaySeeError(f"the speech recognizer {self.name} has no language {language!r}; {fix}")
        self.language = language

    def hear(self, waveform: NDArray[np.float32], *, words: bool = False) -> Transcript:
        """The transcript of a clip [T] of samples at 16 kHz; with ``words`` also the times of its words."""
        found, seconds = self._recognizer.hear(waveform, self.language, words), len(waveform) / SAMPLE_RATE
        # Whisper's times may lie in the padding after the clip.
        timed = tuple(Word(word.text, min(word.start, seconds), min(word.end, seconds)) for word in found.words)
        return replace(found, seconds=seconds, words=timed)


class TranscribedSide:
    """Clips through a speech recognizer, and their transcripts through CLIP's text encoder."""

    kind: Kind = "clip"

    def __init__(self, recognizer: SpeechRecognizer, text: TextSide) -> None:
        self.recognizer, self._text, self.device = recognizer, text, text.device
        self.passes = text.passes

    def prepare(self, item: Any, *, sampling_rate: int = SAMPLE_RATE, max_seconds: float = MAX_SECONDS) -> Transcript:
        """A path, the contents of an audio file or samples [T] to the transcript; an error if it is empty."""
        name = printable(item) if isinstance(item, str | os.PathLike) else None
        return self.of_waveform(waveform_of(item, sampling_rate, max_seconds), name)

    def of_waveform(self, waveform: NDArray[np.float32], name: str | None = None) -> Transcript:
        """What :meth:`prepare` makes of a decoded clip [T] at 16 kHz, which messages call ``name``."""
        found = self.recognizer.hear(waveform)
        if not found.text:
            name = name or f"clip of {found.seconds:.1f} s"
            noise = f" ({found.suppressed!r} was recognized where nobody speaks)" if found.suppressed else ""
            raise MediaError("no-speech", f"{name}: no words were recognized{noise}; speak closer to the microphone")
        return found

    def vectors(self, prepared: list[Transcript]) -> Tensor:
        """Transcripts to unit vectors [N, D], fp32."""
        return self._text.vectors([transcript.text for transcript in prepared])


class _Whisper:
    """faster-whisper: windows, detection of speech and language, int8 on a CPU."""

    def __init__(self, name: str, device: str) -> None:
        with extra_needed("speech recognition by Whisper", "asr"):
            from faster_whisper import WhisperModel
        threads = torch.get_num_threads()
        load = partial(
            WhisperModel,
            name.removeprefix(_OPENAI),
            device=device,
            compute_type="int8" if device == "cpu" else "float16",
            cpu_threads=threads,
        )
        try:
            try:
                self._model = load(local_files_only=True)
            except FileNotFoundError:  # not on this machine yet; huggingface_hub's error is one of these
                self._model = load()
        except FileNotFoundError as error:
            why = f"it is not on this machine and cannot be downloaded ({first_line(error)})"
            raise CheckpointError(f"no Whisper {name}: {why}; go online once, or give its folder") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"no Whisper {name}: {first_line(error)}; {_FIX}") from None
        finally:
            torch.set_num_threads(threads)  # CTranslate2 sets the number of the process, and vectors would change by it
        self.languages = set(self._model.supported_languages)

    def hear(self, waveform: NDArray[np.float32], language: str | None, words: bool) -> Transcript:
        segments, about = self._model.transcribe(
            waveform,
            language=language,
            temperature=0.0,  # it would sample at higher ones
            condition_on_previous_text=False,
            no_speech_threshold=None,  # it would drop segments without a word
            vad_filter=True,
            word_timestamps=words,
        )
        heard: dict[bool, list[str]] = {False: [], True: []}
        timed: list[Word] = []
        for segment in segments:
            is_invented = segment.no_speech_prob > NO_SPEECH and segment.avg_logprob < UNSURE
            heard[is_invented].append(segment.text.strip())
            if words and not is_invented:
                found = [(word.word.strip(), float(word.start), float(word.end)) for word in segment.words]
                timed += [Word(*word) for word in found if word[0]]
        text, suppressed = (" ".join(filter(None, parts)) for parts in heard.values())
        return Transcript(text, about.language, suppressed, words=tuple(timed))


class _Ctc:
    """A recognizer of transformers with CTC, decoded greedily, one clip at a time: padding would change its output."""

    languages: frozenset[str] = frozenset()

    def __init__(self, place: str, device: str) -> None:
        from transformers import AutoModelForCTC
        from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

        read_config(place, tuple(MODEL_FOR_CTC_MAPPING_NAMES), "speech recognizer", _FIX)
        try:
            options = {"dtype": torch.float32, "output_loading_info": True}
            model, report = AutoModelForCTC.from_pretrained(place, **options)
        except Exception as error:  # transformers, safetensors and torch raise many kinds for a broken folder
            raise CheckpointError(f"no speech recognizer at {place}: {first_line(error)}; {_FIX}") from error
        if missing := sorted(name for name in report["missing_keys"] if "masked_spec_embed" not in name):
            raise CheckpointError(f"speech recognizer at {place}: weights are missing, {missing[0]} among them; {_FIX}")
        self._model = model.eval().to(device)
        self._processor = _load_processor(place)

    @torch.inference_mode()
    def hear(self, waveform: NDArray[np.float32], language: str | None, words: bool) -> Transcript:
        del language
        inputs = self._processor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self._model.device)
        path = self._model(**inputs).logits.argmax(dim=-1)[0].tolist()
        timed = self._timed(path, len(waveform) / SAMPLE_RATE / len(path)) if words else ()
        return Transcript(self._processor.tokenizer.decode(path).strip(), words=timed)

    def _timed(self, path: list[int], frame_seconds: float) -> tuple[Word, ...]:
        """The words of a path, one token a frame: from the first frame that adds to a word to the last."""
        found: list[str] = []
        spans: list[list[int]] = []
        adds = False
        for frame, token in enumerate(path):
            if frame == 0 or token != path[frame - 1]:  # else it is the same token, which lasts
                before, found = found, self._processor.tokenizer.decode(path[: frame + 1]).split()
                adds = bool(found) and found != before
                spans = spans[: len(found)] + [[frame, frame] for _ in found[len(spans) :]]
            if adds:
                spans[-1][1] = frame + 1
        times = ((first * frame_seconds, stop * frame_seconds) for first, stop in spans)
        return tuple(Word(word, *span) for word, span in zip(found, times, strict=True))


def _is_whisper(name: str) -> bool:
    """Whether a name is a size of Whisper, a Whisper of the hub, or a folder with one in the form of CTranslate2."""
    folder = Path(name)
    if folder.is_dir():
        return (folder / "model.bin").is_file() and any(folder.glob("vocabulary.*"))
    return "/" not in name or "whisper" in name.lower()


def _load_processor(place: str) -> Any:
    """The recognizer's own processor; a CheckpointError if there is none, or it is unusable here."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(place)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CheckpointError(f"no processor of a speech recognizer at {place}: {first_line(error)}; {_FIX}") from error
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is None or not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"the processor at {place} is not of a speech recognizer; {_FIX}")
    if extractor.sampling_rate != SAMPLE_RATE:
        raise CheckpointError(
            f"the speech recognizer at {place} takes {extractor.sampling_rate} Hz; give one of {SAMPLE_RATE} Hz"
        )
    return processor
