"""Seeds, provenance and the place among torchrun's processes."""

import json
import random

import numpy as np
import torch

from univ import runs


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
