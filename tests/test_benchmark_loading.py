"""The loading benchmark runs, and the ways it compares give the pixels it says they give."""

import argparse

import torch

from scripts.benchmarks import loading


def test_tables(capsys):
    parser = argparse.ArgumentParser()
    loading.add_arguments(parser)
    args = parser.parse_args(["-n", "6", "-b", "4", "--repeats", "1"])
    args.workers, args.device = 1, torch.device("cpu")
    threads = torch.get_num_threads()
    loading.run(args)
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    rows = {cells[1].strip(): cells[2:] for line in printed.splitlines() if len(cells := line.split("|")) > 3}
    for exact in ("Pillow, torchvision transforms to float", "Pillow, 8-bit (ours, default)"):
        assert float(rows[exact][2].split()[0]) == 0
    fast = rows["torch decodes and resizes (ours, fast)"]
    assert float(fast[2].split()[0]) < 3 and int(fast[3]) <= 2
    assert set(rows) >= {"ours, default", "ours, fast"}
