"""Indexing on two Ray nodes, while workers and nodes are killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from media_files import picture, rows
from saysee import Index
from saysee.cli import main
from saysee.search.index.batches import update_part
from saysee.search.index.updating import update_index
from saysee_process import Started, start_saysee

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are found in Linux's /proc")

PATIENCE = 240
PICTURES = 40
SMALL: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of a core each."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={**SMALL, "_system_config": QUICK_TO_NOTICE})
    nodes.add_node(**SMALL)
    yield nodes
    nodes.shutdown()


def freeze_worker(node: Any, killed: int | None) -> int | None:
    """Stops the worker of a node in the middle of what it is writing; returns its id, None if there is none."""
    (raylet,) = node.all_processes["raylet"]
    children = Path(f"/proc/{raylet.process.pid}/task/{raylet.process.pid}/children").read_text().split()
    for child in children:
        if int(child) != killed and b"_Worker.update" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGSTOP)
            return int(child)
    return None


def start(model: Path, photos: Path, to: str, address: str) -> Started:
    return start_saysee("index", model, photos, "--to", to, "--ray", address, "--batch-size", "1", "--json")


def finish(process: Started) -> tuple[dict[str, Any], str]:
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    (line,) = output.splitlines()
    return json.loads(line), errors


def frozen_worker(node: Any, process: Started, killed: int | None = None) -> int:
    """Waits for a worker of a node that writes, other than one that was killed, and stops it."""
    deadline = time.monotonic() + PATIENCE
    while (worker := freeze_worker(node, killed)) is None:
        assert process.poll() is None, "it ended before a worker could be stopped: " + process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return worker


@pytest.mark.nightly  # a minute: two nodes start, and three workers load the model
def test_killed_workers_and_nodes_lose_nothing(cluster, encoder, model_folder, database, tmp_path):
    photos = tmp_path / "photos"
    for number in range(PICTURES):
        picture(photos / f"{number % 5}/{number}.png", number)
    process = start(model_folder, photos, database, cluster.address)
    head, other = cluster.head_node, next(iter(cluster.worker_nodes))
    with ThreadPoolExecutor() as threads:  # each is stopped as soon as it has begun, so neither can do all
        patient, victim = threads.map(lambda node: frozen_worker(node, process), (head, other))
    os.kill(victim, signal.SIGKILL)
    frozen_worker(other, process, killed=victim)
    cluster.remove_node(other, allow_graceful=False)
    assert len(Index.open(database)) < PICTURES
    os.kill(patient, signal.SIGCONT)
    report, errors = finish(process)
    died = [line for line in errors.splitlines() if f"--ray {cluster.address}: " in line and ".png" in line]
    assert len(died) == 2, errors  # each with the part that it was processing
    assert (report["images"], report["refused"]) == (PICTURES, [])
    assert Index.open(database).check() == []
    update_index(encoder, photos, tmp_path / "alone")
    found, alone = rows(database), rows(str(tmp_path / "alone"))
    assert found.keys() == alone.keys()
    vectors = [np.array([np.frombuffer(each[key][1], "<f4") for key in alone]) for each in (found, alone)]
    np.testing.assert_allclose(*vectors, atol=1e-5)

    again, _ = finish(start(model_folder, photos, database, "127.0.0.1:1"))  # no cluster is needed for nothing
    assert (again["encoded"], again["kept"], again["removed"]) == (0, PICTURES, 0)


@pytest.mark.parametrize("store", ["database", "lance"])
def test_what_is_changed_moved_and_damaged_is_reported_as_by_one_process(encoder, store, tmp_path, request):
    if store == "lance":
        pytest.importorskip("lancedb", reason="the extra 'lance' is not installed")
    to = request.getfixturevalue("database") if store == "database" else f"lance://{tmp_path / 'index'}"
    photos = tmp_path / "photos"
    for number in range(6):
        picture(photos / f"{number}.png", number)
    update_index(encoder, photos, to)
    before = rows(to)
    (photos / "0.png").rename(photos / "moved.png")
    picture(photos / "1.png", 100)
    picture(photos / "new.png", 101)
    (photos / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (photos / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    report = update_index(
        encoder,
        photos,
        to,
        batch_size=2,
        spread=lambda parts: (update_part(encoder, to, each) for each in parts),
    )
    counts = {name: getattr(report, name) for name in ("encoded", "kept", "moved", "removed", "images")}
    assert counts == {"encoded": 2, "kept": 3, "moved": 1, "removed": 1, "images": 6}
    assert sorted(Path(path).name for path, _ in report.refused) == ["2.png", "damaged.jpg"]
    after = rows(to)
    assert {path for _, path in after} == {"1.png", "3.png", "4.png", "5.png", "moved.png", "new.png"}
    assert after["image", "moved.png"][1] == before["image", "0.png"][1]
    assert after["image", "1.png"][1] != before["image", "1.png"][1]


def test_without_cluster_or_with_one_writer_it_ends_in_one_line(model_folder, photos, database, tmp_path, capsys):
    words = ["index", str(model_folder), str(photos), "--to"]
    assert main([*words, str(tmp_path / "index"), "--ray"]) == 2
    assert "PostgreSQL" in capsys.readouterr().err
    assert not ray.is_initialized()
    assert main([*words, database, "--ray", "127.0.0.1:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ray 127.0.0.1:1" in line
