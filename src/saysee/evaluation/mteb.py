"""SaySee models in MTEB, for its retrieval tasks between speech, images and text (extra ``mteb``).

    import mteb
    from saysee.evaluation.mteb import MtebEncoder

    tasks = mteb.get_tasks(tasks=["SpokenCOCOA2IRetrieval", "SpokenCOCOI2ARetrieval"])
    mteb.evaluate(MtebEncoder("runs/spokencoco-base/best"), tasks)

SaySee decodes the files, not the library. MTEB has other names for some measures: see docs/evaluate.md.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.encoding.encoder import Encoder
from saysee.encoding.sides import Kind
from saysee.errors import MissingExtraError, SaySeeError
from saysee.files import short_name
from saysee.media.audio import check_waveform
from saysee.model.retriever import SpeechImageModel

try:
    from datasets import Audio, Image
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
except ImportError as error:
    raise MissingExtraError("MTEB's evaluation", "mteb") from error

CHUNK = 256  # rows that are read from a data set at a time
_KINDS: dict[str, Kind] = {"audio": "clip", "image": "image", "text": "text"}  # by the names of MTEB
_UNKNOWN = (
    *("loader", "release_date", "languages", "memory_usage_mb", "max_tokens", "license", "public_training_code"),
    *("public_training_data", "training_datasets"),
)
_UNDECODED = {"audio": Audio(decode=False), "image": Image(decode=False)}


class MtebEncoder(AbsEncoder):  # type: ignore[misc]
    """A ``SpeechImageModel`` as an encoder of MTEB.

    Args:
        model: the model, or its folder or hub name.
        revision: of the model, in MTEB's results.
        name: of the model in MTEB's results, as "owner/model"; None is the name of its run or folder.
        device: where a model that is loaded here computes; None is the CPU.

    Raises CheckpointError if there is no such model.
    """

    def __init__(
        self,
        model: SpeechImageModel | str | os.PathLike[str],
        revision: str | None = None,
        *,
        name: str | None = None,
        device: str | None = None,
    ) -> None:
        if isinstance(model, SpeechImageModel):
            self.model, place = model, "model"
        else:
            self.model, place = SpeechImageModel.from_pretrained(model), os.fspath(model)
            self.model.to(device or "cpu")
        self._encoder = Encoder(self.model)
        has_text = self._encoder.has_text
        self.mteb_model_meta = ModelMeta(
            name=name or f"saysee/{short_name(place)}",
            revision=revision or "0",
            n_parameters=sum(weight.numel() for weight in self.model.parameters()),
            embed_dim=self.model.config.projection_dim,
            open_weights=True,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            modalities=[name for name in _KINDS if has_text or name != "text"],
            **dict.fromkeys(_UNKNOWN),
        )

    def encode(
        self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, prompt_type: Any = None, **kwargs: Any
    ) -> NDArray[np.float32]:
        """Unit vectors [N, D] of a data set of clips, images or texts, in order.

        ``inputs`` is MTEB's loader, whose data set has a column ``audio``, ``image`` or ``text``; ``kwargs`` has
        ``batch_size``. An input has the same vector in all splits, subsets and prompts. Raises SaySeeError if the data
        set has none of these columns, or several; MediaError if a clip or an image cannot be decoded.
        """
        del hf_split, hf_subset, prompt_type
        dataset = inputs.dataset
        have = [name for name in _KINDS if name in dataset.column_names]
        if len(have) != 1:
            what = f"{task_metadata.name} has the columns {', '.join(dataset.column_names)}"
            raise SaySeeError(f"{what}; a SaySee model encodes one of {', '.join(_KINDS)} at a time")
        modality = have[0]
        if isinstance(dataset.features[modality], Audio | Image):
            dataset = dataset.cast_column(modality, _UNDECODED[modality])
        vectors, size = [], kwargs.get("batch_size", 32)
        for start in range(0, len(dataset), CHUNK):
            items = [_contents(value) for value in dataset[start : start + CHUNK][modality]]
            vectors.append(self._encoder.encode(_KINDS[modality], items, batch_size=size, progress=False))
        return np.concatenate(vectors)


def _contents(value: Any) -> Any:
    """An item as the encoder takes it: bytes, a path, samples at 16 kHz, a Pillow image, or a text."""
    if not isinstance(value, Mapping):
        return value
    if "array" in value:
        return check_waveform(np.asarray(value["array"]), sampling_rate=value["sampling_rate"])
    return value["path"] if value["bytes"] is None else value["bytes"]
