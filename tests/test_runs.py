"""Seeds, provenance and the place among torchrun's processes."""

import json
import random
import resource

import numpy as np
import pytest
import torch

from univ import runs
from univ.errors import InputError


def test_seeds_fix_every_global_generator():
    draws = []
    for _ in range(2):
        runs.seed_everything(5)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_arguments_come_with_commit_and_versions(tmp_path):
    runs.write_arguments(tmp_path / "args.json", {"eps": 3, "save": tmp_path})
    found = json.loads((tmp_path / "args.json").read_text())
    assert found["arguments"] == {"eps": 3, "save": str(tmp_path)}
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["commit"]


def test_without_torchrun_this_process_is_the_whole_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    alone = runs.Distributed.from_environment(torch.device("cpu"))
    assert alone.is_main and alone.world_size == 1
    assert alone.broadcast("x") == "x"
    assert alone.all_reduce_sum(torch.ones(2)).equal(torch.ones(2))
    alone.barrier()
    alone.close()


def test_a_process_of_torchrun_tells_nccl_its_device(monkeypatch):
    joined, current = [], []
    monkeypatch.setattr(runs.dist, "init_process_group", lambda backend, device_id: joined.append((backend, device_id)))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    device = torch.device("cuda:1")
    for asked in ("cuda", "cuda:1"):
        assert runs.Distributed.from_environment(torch.device(asked)).device == device
    runs.Distributed.from_environment(torch.device("cpu"))
    assert joined == [("nccl", device), ("nccl", device), ("gloo", None)] and current == [device, device]


def test_log_lines_go_to_the_file_too(tmp_path):
    runs.start(quiet=True, log_file=tmp_path / "logs/run.log")
    runs.logger.info("wrote {:,} images", 1234)
    runs.start(quiet=True)
    assert "wrote 1,234 images" in (tmp_path / "logs/run.log").read_text()


def test_tensorboard_reads_our_log_as_it_reads_torchs(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    def values(folder):
        events = EventAccumulator(str(folder)).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    for first in (1, 3):  # the second run does steps 3 and 4 again
        with SummaryWriter(tmp_path / "theirs", purge_step=first, filename_suffix=str(first)) as writer:
            add = runs.scalars(tmp_path / "ours", purge_step=first)
            for step in range(first, 5):
                writer.add_scalar("loss/train", first + step / 10, step)
                add("loss/train", first + step / 10, step)
    assert values(tmp_path / "ours") == values(tmp_path / "theirs") != {}
    log = max((tmp_path / "ours").iterdir())  # named after the time
    before = log.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*File too large"):
            add("loss/train", 1, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.read_bytes() == before
