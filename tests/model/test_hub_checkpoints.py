"""Checkpoints of the hub, which is a folder here: downloads, files in parts, and errors of one line."""

from __future__ import annotations

import json
from functools import partial

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import httpx
from transformers import CLIPModel, HubertModel

from saysee import SpeechImageModel
from saysee.errors import CheckpointError
from saysee.model.pretrained.weights import load_clip, load_hubert

RESPONSE = httpx.Response(404, request=httpx.Request("GET", "http://hub"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A function that names a folder, or an error, as what the hub has under a name; and what was asked for."""
    known, asked = {}, []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        found = known[repository]
        if isinstance(found, Exception):
            raise found
        if not (found / name).is_file():
            raise errors.EntryNotFoundError("404 Client Error")
        return str(found / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return known, asked


def test_both_encoders_are_downloaded_file_by_file(hub, hubert_folder, clip_folder):
    known, asked = hub
    known |= {"someone/hubert": hubert_folder, "someone/clip": clip_folder}
    model = SpeechImageModel.from_encoders("someone/hubert", "someone/clip")
    assert model.encode_text(["two green stars"]).shape == (1, 24)
    assert ("someone/hubert", "model.safetensors", {}) in asked
    assert not any(name.endswith(".bin") for _, name, _ in asked)


def test_a_revision_is_asked_for_at_every_file(hub, hubert_configs, clip_config, tmp_path):
    known, asked = hub
    SpeechImageModel.from_encoders(hubert_configs["base"], clip_config).save_pretrained(tmp_path / "model")
    known["someone/model"] = tmp_path / "model"
    SpeechImageModel.from_pretrained("someone/model", revision="v2")
    assert {options["revision"] for _, _, options in asked} == {"v2"}


def test_weights_in_several_files_are_put_together(hub, hubert_folder, clip_folder, tmp_path):
    hubert, clip = HubertModel.from_pretrained(hubert_folder), CLIPModel.from_pretrained(clip_folder)
    hubert.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    state = load_hubert(tmp_path / "parts").state_dict()
    assert all(torch.equal(state[name], value) for name, value in hubert.state_dict().items())

    clip.config.save_pretrained(tmp_path / "old")
    names = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(clip.state_dict())}
    for part in set(names.values()):
        torch.save({name: clip.state_dict()[name] for name in names if names[name] == part}, tmp_path / "old" / part)
    (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    state = load_clip(tmp_path / "old", text=True).state_dict()
    assert all(torch.equal(state[name], value) for name, value in clip.state_dict().items())
    (tmp_path / "old" / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"old: it has no pytorch_model-1\.bin"):
        load_clip(tmp_path / "old", text=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("no"), "cannot be reached"),
        (errors.HFValidationError("no"), "no such folder"),
        (errors.GatedRepoError("no", response=RESPONSE), "hf auth login"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "no such model"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, error, words):
    known, _ = hub
    known["someone/hubert"] = error
    for load in (load_hubert, partial(SpeechImageModel.from_encoders, image="saysee/clip-nano")):
        with pytest.raises(CheckpointError, match=f"someone/hubert: .*{words}") as raised:
            load("someone/hubert")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", ["50KB", "1GB"])
def test_a_connection_lost_before_the_weights_is_reported(hub, hubert_folder, tmp_path, monkeypatch, size):
    known, _ = hub
    HubertModel.from_pretrained(hubert_folder).save_pretrained(tmp_path / "hubert", max_shard_size=size)
    known["someone/hubert"] = tmp_path / "hubert"
    whole = huggingface_hub.hf_hub_download

    def download(repository, name, **options):
        if name.endswith((".safetensors", ".bin")):
            raise errors.LocalEntryNotFoundError("no")
        return whole(repository, name, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "config.json")
    with pytest.raises(CheckpointError, match=r"someone/hubert: .*hub cannot be reached"):
        load_hubert("someone/hubert")
