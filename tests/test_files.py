"""Files are whole or absent."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from disks import make_device

from univ.errors import InputError
from univ.files import disk as files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.csv"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "save",
    [
        lambda path: files.write_text(path, "x" * 10_000_000),
        lambda path: files.save_torch(path, torch.zeros(10_000_000)),
    ],
)
def test_a_full_disk_is_one_clear_error(tmp_path, save):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            save(tmp_path / "big")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_equal_values_make_equal_files(tmp_path):
    for name in ("a", "b"):
        files.save_torch(tmp_path / name, {"x": torch.arange(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        files.write_json(tmp_path / "file" / "args.json", {})


def test_json_and_hash(tmp_path):
    files.write_json(tmp_path / "a.json", {"path": tmp_path, "k": 3})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": str(tmp_path), "k": 3}
    files.write_text(tmp_path / "abc", "abc")
    # FIPS 180-2, appendix B.1
    assert files.file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_links_are_written_through_and_devices_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to("there/scores.csv")
    files.write_text(link, "one")
    files.append_text(link, "two\n")
    assert link.is_symlink() and (tmp_path / "there" / "scores.csv").read_text() == "one\ntwo\n"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    make_device(tmp_path / "device")
    for odd in (tmp_path / "pipe", tmp_path / "there", tmp_path / "loop", tmp_path / "device"):
        for write in (files.write_text, files.append_text):
            with pytest.raises(InputError, match=r"^cannot write .*it is (not a regular file|a folder)$"):
                write(odd, "x")
    assert not (tmp_path / "device").is_file()


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "/etc", "../x", "a\\b", "a\0b", "a\nb", "a\x1bb", "x" * 201, "ab\u202e", "\udc80"]
)
def test_what_is_no_file_name_is_refused(text):
    with pytest.raises(InputError, match=r"--exp .*file name") as error:
        files.file_name(text, "--exp")
    assert "\n" not in str(error.value) and str(error.value).isprintable()


def test_file_names_are_given_back():
    for text in ("resnet50", "0.1", "resnet50@1", "timm_convnext.a1", "größe", "..a"):
        assert files.file_name(text, "--exp") == text


def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    path = tmp_path / "scores[1].csv"
    script = """
import sys, time
from univ.files import disk as files
with files.atomic_path(sys.argv[1]):
    print(flush=True)
    time.sleep(60)
"""
    run = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    run.stdout.readline()
    files.write_text(path, "beside a living writer")
    assert len(list(tmp_path.iterdir())) == 2, "the other writer's file is left alone"
    run.kill()
    run.wait()
    run.stdout.close()
    files.write_text(path, "after it")
    assert list(tmp_path.iterdir()) == [path]


def test_one_holds_a_lock_and_the_next_is_told_who(tmp_path):
    path = tmp_path / "run"
    with files.locked(path):
        with pytest.raises(InputError, match=f"run is being written by process {os.getpid()} on "), files.locked(path):
            raise AssertionError("two hold the lock")
        with files.locked(tmp_path / "other"):
            pass
    with files.locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def _count(path, times):
    for _ in range(times):
        with files.locked(path, wait=True):
            value = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(value + 1))


def test_those_who_wait_take_turns(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    processes = [multiprocessing.get_context("spawn").Process(target=_count, args=(path, 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "75" and list(tmp_path.iterdir()) == [path]


def test_a_killed_holder_lets_go_though_its_workers_live_on(tmp_path):
    script = """
import os, signal, sys, time
from univ.files import disk as files
with files.locked(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print(flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE) as run:
        run.stdout.readline()
        run.wait()
        assert run.returncode == -signal.SIGKILL
        with files.locked(tmp_path / "run"):
            pass
        run.stdout.close()


def test_lines_are_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    files.append_text(path, "1,2\n", header="a,b")
    files.append_text(path, "3,4\n", header="a,b")
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            files.append_text(path, "5,6\n" * 100, header="a,b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    with path.open("a") as file:
        file.write("7,")  # as a crash leaves it
    files.append_text(path, "8,9\n", header="a,b")
    assert path.read_text().splitlines()[-2:] == ["7,", "8,9"]
    with pytest.raises(InputError, match="begins with 'a,b', expected a,c"):
        files.append_text(path, "", header="a,c")


def test_a_content_hash_follows_every_byte_and_reads_again_only_what_changed(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    before, stamp = files.content_hash(path), path.stat().st_mtime_ns
    assert before == files.file_hash(path)
    path.write_bytes(b"x" * 500 + b"y" + b"x" * 499)
    os.utime(path, ns=(stamp, stamp))  # same size, same mtime: the change of the inode tells
    after = files.content_hash(path)
    assert after == files.file_hash(path) != before
    monkeypatch.setattr(files.time, "time_ns", lambda clock=time.time_ns: clock() + 10**10)  # ten seconds later
    assert files.content_hash(path) == after
    monkeypatch.setattr(files, "file_hash", lambda path: 1 / 0)
    assert files.content_hash(path) == after


def test_text_that_is_none_is_one_line(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        files.read_text(tmp_path / "a")
    with pytest.raises(InputError, match="is a folder"):
        files.read_text(tmp_path)
