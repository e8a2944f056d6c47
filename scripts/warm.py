"""Runs scripts in forks of a process that has imported torch: a short job then starts in milliseconds, not seconds.

    python scripts/warm.py --serve SOCKET          imports, then waits for work
    python -IS scripts/warm.py SCRIPT WORD...      as `python SCRIPT WORD...`, in a fork; UNIV_WARM names the socket

The fork has this process's folder, environment, output and, when it is killed, its end. For the CPU only.
"""

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path


def child(asked: dict, descriptors: list[int]) -> None:
    """What a fork does: becomes the process that asked, and runs its script."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["words"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = 0
    try:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the server registered for its own end is not this process's


def serve(path: str) -> None:
    """Fork for each connection; answer with the exit code, and end the fork whose client is gone."""
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    import cifar10_training, compare_probes, func, inversion, rep, subgroup_sim, train_probe  # noqa: E401, F401, I001

    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    parent, clients = os.getppid(), {}
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    ready.register(wake, selectors.EVENT_READ)
    while os.getppid() == parent:
        for key, _ in ready.select(timeout=5):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                message, descriptors, *_ = socket.recv_fds(connection, 1 << 20, 3)
                if (pid := os.fork()) == 0:
                    child(json.loads(message), descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                clients[pid] = connection
                ready.register(connection, selectors.EVENT_READ, pid)
            elif key.data is None:
                os.read(wake, 4096)
                while clients and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    connection = clients.pop(ended[0])
                    with contextlib.suppress(OSError):  # the client may be gone
                        connection.sendall(bytes([os.waitstatus_to_exitcode(ended[1]) & 255]))
                    if connection in ready.get_map():
                        ready.unregister(connection)
                    connection.close()
            else:  # the client has ended before its fork
                ready.unregister(key.fileobj)
                os.kill(key.data, signal.SIGTERM)


def ask(words: list[str]) -> int:
    """Have the server run a script, and wait for its exit code."""
    message = {"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["UNIV_WARM"])
        socket.send_fds(server, [json.dumps(message).encode()], [0, 1, 2])
        return (server.recv(1) or b"\1")[0]


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1:]))
