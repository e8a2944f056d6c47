"""The tests' surroundings: usual reactions to signals, and threads that sleep between parallel regions.

Tests run beside their own child processes, where spinning threads cost more than half of the time; the settings are
read when torch is loaded.
"""

import os
import signal

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C (and nohup, hang-ups), and the programs they
# start inherit that; the tests of signals need the usual reactions.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # processes side by side share the cores
    cores = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for library in ("OMP", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(max(1, cores)))


@pytest.fixture(autouse=True, scope="session")
def own_hashes(tmp_path_factory):
    """Hashes of files that the tests make are not kept in the home folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def one_thread():
    """Networks as small as the tests' gain nothing from threads, and lose much where other processes are busy."""
    import torch  # not before the settings above

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
