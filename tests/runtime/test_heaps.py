"""The number of heaps that glibc makes for a process of many threads, as its malloc_info reports it."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, re, sys, threading
library = ctypes.CDLL(None)
if not hasattr(library, "malloc_info"):
    sys.exit(77)
if sys.argv[1] == "bounded":
    from selfplay.runtime.heaps import bound_heaps
    bound_heaps()
all_hold = threading.Barrier(33)
def hold():
    held = [bytearray(50_000) for _ in range(20)]
    all_hold.wait()
threads = [threading.Thread(target=hold) for _ in range(32)]
for thread in threads:
    thread.start()
all_hold.wait()
for thread in threads:
    thread.join()
library.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(library.fopen(sys.argv[2].encode(), b"w"))
library.malloc_info(0, stream)
library.fclose(stream)
print(len(re.findall("<heap nr=", open(sys.argv[2]).read())))
"""


def heaps(kind, folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(folder / kind)], capture_output=True, text=True, timeout=60
    )
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_threads_share_two_heaps_instead_of_one_each(tmp_path):
    assert heaps("free", tmp_path) > 4
    assert heaps("bounded", tmp_path) <= 2
