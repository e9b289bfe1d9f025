"""The sandbox contract as checks that every backend must pass. Whoever writes a backend can run them.

A check opens the sandboxes that it needs. It raises AssertionError, with what it saw, when a backend breaks
the contract. Invariant: the checks use the contract in base.py alone and treat all backends alike.
"""

from __future__ import annotations

import io
import re
import resource
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from selfplay.errors import (
    ArtifactError,
    EnvironmentBuildError,
    SandboxError,
    SandboxLost,
)
from selfplay.sandbox.base import Limits, Sandbox, SandboxBackend, SandboxSpec

SMALL = Limits(
    memory_bytes=192 << 20,
    processes=64,
    file_bytes=8 << 20,
    workspace_bytes=16 << 20,
    submit_bytes=1 << 20,
    tmp_bytes=4 << 20,
    output_bytes=64 << 10,
)
Check = Callable[[SandboxBackend, SandboxSpec], None]


def small(spec: SandboxSpec) -> SandboxSpec:
    return replace(spec, limits=SMALL)


def says(box: Sandbox, command: str, timeout_s: float = 30.0) -> str:
    """The output of a command that must succeed."""
    result = box.run(command, timeout_s)
    assert result.exit_code == 0, f"{command!r} ended with {result.exit_code}: {result.text!r}"
    return result.text.strip()


def is_alone(box: Sandbox) -> bool:
    """Whether only the command server and the shell of this question run in the sandbox."""
    return says(box, 'n=0; for p in /proc/[0-9]*; do n=$((n + 1)); done; echo "$n"') == "2"


# ---- a shell


def keeps_folder_and_exported_variables(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        assert says(box, "pwd") == "/testbed"
        says(box, "mkdir 'a b' && cd 'a b' && export WORD=$'one\\ntwo  three' && lost=yes")
        assert says(box, 'pwd; echo "$WORD"; echo "${lost-none}"') == "/testbed/a b\none\ntwo  three\nnone"
        box.run("cd /tmp; export WORD=left; exit 3")
        assert says(box, 'pwd; echo "$WORD"; unset WORD') == "/tmp\nleft"
        assert says(box, 'echo "${WORD-unset}"') == "unset"
        says(box, "mkdir /tmp/gone && cd /tmp/gone && rm -r /tmp/gone")
        assert box.run("pwd").exit_code == 0, "a folder that was removed keeps the next command from running"


def reports_exit_codes_and_signals(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        expected = {
            "true": 0,
            "false": 1,
            "exit 42": 42,
            "kill -9 $$": 137,
            "kill -TERM $$": 143,
            "set -e; false; true": 1,
            "no-such-program": 127,
        }
        seen = {command: box.run(command).exit_code for command in expected}
        assert seen == expected, f"exit codes {seen}"
        assert box.run("if").exit_code != 0, "a syntax error counts as success"
        assert box.run("exec false").exit_code == 1


def passes_bytes_through(backend: SandboxBackend, spec: SandboxSpec) -> None:
    data = bytes(range(256)) * 300
    with backend.open(spec) as box:
        result = box.run("cat", stdin=data)
        assert result.output == data and not result.truncated, (
            f"{len(result.output)} of {len(data)} bytes came back"
        )
        assert box.run("cat; echo end", timeout_s=10).output == b"end\n", (
            "without input, a command must see its end at once"
        )
        assert box.run("echo out; echo err >&2").output == b"out\nerr\n"
        long_command = "x=" + "a" * 300_000 + "; echo ${#x}"
        assert box.run(long_command).text.strip() == "300000"


def lets_background_processes_live(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        started = time.monotonic()
        box.run("(while sleep 0.05; do echo noise; done) & sleep 60 & echo started", timeout_s=20)
        assert time.monotonic() - started < 10, (
            "a background process that holds the output open delayed the command's end"
        )
        time.sleep(0.3)
        # Between two rounds the loop has no sleep, so the processes are counted until both are there.
        count_sleeps = (
            "for i in $(seq 200); do jobs=0; for p in /proc/[0-9]*/comm; do "
            'read -r c <$p; [ "$c" = sleep ] && jobs=$((jobs + 1)); done 2>/dev/null; '
            "[ $jobs = 2 ] && break; done; echo $jobs"
        )
        assert says(box, count_sleeps) == "2"
        assert says(box, "echo clean") == "clean", "a background process spoke into a later command's output"


# ---- output


def cuts_output_while_it_streams(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(small(spec)) as box:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = box.run("yes", timeout_s=2)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert result.timed_out and result.truncated and result.exit_code == 124, result
        assert len(result.output) == SMALL.output_bytes, (
            f"{len(result.output)} bytes came for a cap of {SMALL.output_bytes}"
        )
        assert grown_kib < 32 << 10, f"the harness grew by {grown_kib} KiB"
        exact = box.run("head -c 1000 /dev/zero", output_bytes=1000)
        assert len(exact.output) == 1000 and not exact.truncated, "output that just fits is called cut"
        assert box.run("head -c 1001 /dev/zero", output_bytes=1000).truncated, (
            "output beyond the cap is called whole"
        )


# ---- time


def a_timeout_leaves_no_process_and_keeps_the_workspace(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        says(box, "echo kept > file; export KEPT=yes")
        command = (
            "trap '' TERM INT HUP; (trap '' TERM; sleep 301) & setsid sleep 302 & "
            "nohup sleep 303 >/dev/null 2>&1 & "
            "(setsid bash -c 'sleep 304 & exec sleep 305' &) ; python3 -c 'import os\n"
            "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  import time; time.sleep(306)\n' ; "
            "sleep 307"
        )
        started = time.monotonic()
        result = box.run(command, timeout_s=2)
        assert result.timed_out and result.exit_code == 124, result
        assert time.monotonic() - started < 15
        assert is_alone(box), f"processes outlived their timeout:\n{box.run('ps axf').text}"
        assert says(box, 'cat file; echo "$KEPT"') == "kept\nyes"


def the_server_cannot_be_touched(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        names = "HUP INT QUIT KILL TERM STOP USR1 USR2 CHLD PIPE SEGV ALRM"
        signals = f"for s in {names}; do kill -$s 1 2>/dev/null; done; echo alive"
        assert says(box, signals) == "alive"
        assert says(box, "echo still") == "still"
        for path in ("/proc/1/fd/0", "/proc/1/fd/200", "/proc/1/fd/201", "/proc/1/mem", "/proc/1/environ"):
            assert box.run(f"head -c 1 {path}; true").text.count("denied") == 1, (
                f"{path} of process 1 can be opened"
            )
        assert "200" not in says(box, "ls /proc/self/fd").split(), "a command inherited the protocol"
        box.run("kill -9 -1; kill -STOP -1", timeout_s=10)
        assert says(box, "echo after") == "after"


# ---- bombs


def a_memory_bomb_ends_itself_only(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(small(spec)) as box:
        try:
            result = box.run(
                "python3 -c \"b = [bytearray(1 << 20) for _ in range(1 << 11)]; print('got', 2, 'GiB')\"",
                timeout_s=60,
            )
        except SandboxLost:
            return  # without control groups the watchdog ends the whole sandbox, as `Limits` says
        assert result.exit_code != 0 and "got 2 GiB" not in result.text, (
            f"2 GiB were had with a limit of 192 MiB: {result}"
        )
        assert says(box, "echo alive") == "alive"


def a_fork_bomb_is_contained(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(small(spec)) as box, backend.open(small(spec)) as neighbour:
        result = box.run("f() { f | f & }; f; sleep 30", timeout_s=3)
        assert result.timed_out or result.exit_code != 0, result
        assert says(neighbour, "echo fine") == "fine"
        box.run("for i in $(seq 200); do sleep 60 & done 2>/dev/null", timeout_s=6)
        assert says(box, "echo $((1 + 1))") == "2", "after filling the process limit no command runs any more"
        box.run("sleep 30", timeout_s=0.3)
        assert is_alone(box)


def disks_and_files_are_bounded(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(small(spec)) as box:
        for folder, size in (
            ("/testbed", SMALL.workspace_bytes),
            ("/submit", SMALL.submit_bytes),
            ("/tmp", SMALL.tmp_bytes),
            ("/dev/shm", 64 << 20),
        ):
            box.run(
                f"for i in $(seq 40); do head -c 4m /dev/zero > {folder}/fill$i || break; done 2>/dev/null",
                timeout_s=60,
            )
            used = int(says(box, f"cat {folder}/fill* 2>/dev/null | wc -c"))
            box.run(f"rm -f {folder}/fill*")
            assert used <= size, f"{used} bytes fit into {folder}, which may hold {size}"
        result = box.run(f"head -c {SMALL.file_bytes * 2} /dev/zero > big; stat -c %s big; rm big")
        assert int(result.text.split()[-1]) <= SMALL.file_bytes, f"a file grew to {result.text}"
        assert says(box, "echo ok > after && cat after") == "ok"


# ---- walls


def has_no_network(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        probe = "import socket; socket.create_connection(('{}', {}), 3)"
        for host, port in (("1.1.1.1", 53), ("169.254.169.254", 80), ("172.17.0.1", 22)):
            assert box.run(f'python3 -c "{probe.format(host, port)}"').exit_code != 0, (
                f"{host}:{port} answers"
            )
        devices = says(box, "tail -n +3 /proc/net/dev | cut -d: -f1").split()
        assert [device for device in devices if device not in ("lo", "tunl0", "sit0", "ip6tnl0")] == [], (
            f"network devices: {devices}"
        )
        assert box.run("ls /var/run/docker.sock /run/docker.sock").exit_code != 0, (
            "the engine's socket is there"
        )


def runs_without_privileges(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        status = dict(re.findall(r"^(\w+):\s*(.*)$", says(box, "cat /proc/self/status"), re.MULTILINE))
        assert "0" not in status["Uid"].split() and "0" not in status["Gid"].split(), (
            f"uid {status['Uid']}, gid {status['Gid']}"
        )
        assert all(
            int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")
        ), status
        assert status["NoNewPrivs"] == "1"
        assert "0" not in status["Groups"].split(), f"groups {status['Groups']}"
        for command in (
            "mount -t tmpfs none /tmp",
            "chroot / true",
            "mknod /tmp/null c 1 3",
            "su -c true",
            "unshare --user true",
            "unshare --net true",
        ):
            assert box.run(command).exit_code != 0, f"{command!r} succeeded"
        thread = "t = threading.Thread(target=print, args=('threads work',))"
        threads = f"import threading; {thread}; t.start(); t.join()"
        assert says(box, f'python3 -c "{threads}"') == "threads work"


def all_else_is_read_only(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        for folder in ("/testbed", "/submit", "/tmp"):
            assert says(box, f"ls -A {folder}") == "", f"{folder} is not empty at the start"
            says(box, f"echo x > {folder}/x")
        writable = says(
            box,
            "find / -xdev -writable ! -type l ! -path '/proc/*' ! -path '/dev/*' 2>/dev/null | head -50; "
            "true",
        )
        really = [
            path
            for path in writable.splitlines()
            if box.run(f"[ -d '{path}' ] && touch '{path}/x' || [ -f '{path}' ] && : >>'{path}'").exit_code
            == 0
        ]
        assert really == [], f"writable outside the three folders: {really}"
        for path in (
            "/x",
            "/usr/x",
            "/etc/x",
            "/opt/x",
            "/opt/env/x",
            "/var/x",
            "/dev/x",
            "/etc/passwd",
            "/proc/sys/kernel/hostname",
        ):
            assert box.run(f"echo x >> {path}").exit_code != 0, f"{path} can be written"


def hides_what_the_spec_names(backend: SandboxBackend, spec: SandboxSpec) -> None:
    look = "cat /usr/bin/tee 2>/dev/null | wc -c; ls -A /usr/share | wc -l"
    with backend.open(spec) as box:
        assert "0" not in says(box, look).split(), "/usr/bin/tee or /usr/share is empty: nothing is tried"
    with backend.open(replace(spec, hidden=("/usr/bin/tee", "/usr/share/"))) as box:
        assert says(box, look).split() == ["0", "0"]
        assert box.run("touch /usr/share/x").exit_code != 0


def sandboxes_do_not_see_each_other(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as one, backend.open(spec) as two:
        says(one, "for d in /testbed /tmp /submit /dev/shm; do echo secret > $d/f; done; sleep 4321 &")
        assert says(two, "ls -A /testbed /tmp /submit /dev/shm | grep -c '^f' || true") == "0"
        assert is_alone(two), "another sandbox's processes are visible"
        assert "4321" not in says(two, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def starts_from_a_clean_environment(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(replace(spec, variables={"GIVEN": "value with 'quotes' and\nlines"})) as box:
        assert says(box, 'echo "$GIVEN"') == "value with 'quotes' and\nlines"
        names = set(says(box, "env -0 | cut -z -d= -f1 | tr '\\0' '\\n'").split())
        leaked = {
            name
            for name in names
            if re.match(r"AWS|PIP_|SSL|SELFPLAY|HF_|OPENAI|SSH|GITHUB|VIRTUAL_ENV|PYTHONPATH", name)
        }
        assert not leaked, f"the harness's variables are visible: {leaked}"
        assert says(box, "echo $PYTHONDONTWRITEBYTECODE $HOME $LANG") == "1 /tmp C.UTF-8"
        says(box, "git init -q . && echo a > a && git add a && git commit -q -m first && git status --short")
        assert says(box, "env -i /bin/sh -c 'PATH=/opt/python/bin:/usr/bin python3 -c \"print(1)\"'") == "1"
        packages = says(
            box,
            "python3 -S -c 'import sys; print(sys.prefix)'; "
            "find /usr /opt/python -path '*-packages/*' 2>/dev/null | head -5; true",
        ).splitlines()[1:]
        assert packages == [], f"installed packages of the machine are visible: {packages}"


# ---- files


def make_tar(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def files_go_in_and_out(backend: SandboxBackend, spec: SandboxSpec) -> None:
    content = bytes(range(256)) * 4096
    with backend.open(spec) as box:
        box.write_archive(
            "/testbed", make_tar(("a/b/c.bin", content), ("plain", b"text"), ("sp ace/ünïcode", b""))
        )
        assert says(box, "cat plain; stat -c %s a/b/c.bin") == "text1048576"
        says(box, "chmod +x plain; mkdir -p .git sub/.git; echo no > .git/config; echo no > sub/.git/x")
        says(box, "ln -s /etc/passwd link; mkfifo pipe; ln -s /etc etc")
        with tarfile.open(fileobj=io.BytesIO(box.read_archive("/testbed", 4 << 20))) as archive:
            members = {member.name: member for member in archive}
            assert set(members) == {"a/b/c.bin", "plain", "sp ace/ünïcode"}, f"read back {sorted(members)}"
            assert members["plain"].mode & 0o111 and not members["a/b/c.bin"].mode & 0o111
            read = archive.extractfile("a/b/c.bin")
            assert read is not None and read.read() == content
        says(
            box,
            "mkdir /submit/odd && (cd /submit/odd && : > $'\\xff\\xfe' && : > $'line\\nbreak' && : > ./-rf)",
        )
        with tarfile.open(fileobj=io.BytesIO(box.read_archive("/submit", 1 << 20))) as archive:
            assert len(archive.getnames()) == 3, f"odd names came back as {archive.getnames()}"
        box.write_archive("/testbed", make_tar(("link", b"replaced")))
        assert says(box, "cat link; stat -c %F link") == "replacedregular file", (
            "a link that was in the way was followed"
        )


def bad_archives_are_refused(backend: SandboxBackend, spec: SandboxSpec) -> None:
    def special(name: str, kind: bytes, target: str = "") -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        return out.getvalue()

    bad = {
        "..": make_tar(("../x", b"")),
        "inner ..": make_tar(("a/../../x", b"")),
        "absolute": make_tar(("/tmp/x", b"")),
        "symlink": special("l", tarfile.SYMTYPE, "/etc"),
        "hard link": special("l", tarfile.LNKTYPE, "x"),
        "device": special("d", tarfile.CHRTYPE),
        "fifo": special("f", tarfile.FIFOTYPE),
        "not a tar": b"nothing of the kind" * 100,
    }
    with backend.open(small(spec)) as box:
        for name, archive in bad.items():
            write = partial(box.write_archive, "/testbed", archive)
            assert refused(write), f"an archive with {name} was taken"
        assert says(box, "ls -A /testbed /tmp | grep -v : || true") == ""
        assert refused(lambda: box.write_archive("/usr", make_tar(("x", b"")))), (
            "an archive was written to /usr"
        )
        assert refused(lambda: box.write_archive("/submit", make_tar(("x", bytes(2 << 20))))), (
            "2 MiB fit into 1 MiB"
        )
        says(box, "rm -rf /submit/*; head -c 500000 /dev/zero > /submit/f")
        message = refused(lambda: box.read_archive("/submit", 100_000))
        assert "500" in message, f"the size is not named: {message!r}"
        assert refused(lambda: box.read_archive("/submit/none", 1000)), "a folder that is not there was read"
        says(box, "truncate -s 8m /submit/sparse && rm /submit/f")
        assert refused(lambda: box.read_archive("/submit", 1 << 20)), (
            "a sparse file was read beyond the limit"
        )
        assert says(box, "echo alive") == "alive"


def refused(action: Callable[[], object]) -> str:
    try:
        action()
    except ArtifactError as error:
        return str(error) or "refused"
    return ""


# ---- ends


def closing_is_idempotent_and_final(backend: SandboxBackend, spec: SandboxSpec) -> None:
    with backend.open(spec) as box:
        box.run("sleep 1000 &")
        box.close()
        box.close()
        try:
            box.run("true")
        except SandboxError:
            return
        raise AssertionError("a closed sandbox ran a command")


def many_work_at_once(backend: SandboxBackend, spec: SandboxSpec) -> None:
    failures: list[str] = []

    def one(number: int) -> None:
        try:
            with backend.open(spec) as box:
                for turn in range(5):
                    seen = says(box, f"echo {number}-{turn}")
                    assert seen == f"{number}-{turn}", seen
        except BaseException as error:
            failures.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [], failures


def outlives_the_thread_that_opened_it(backend: SandboxBackend, spec: SandboxSpec) -> None:
    context = backend.open(spec)
    boxes: list[Sandbox] = []
    opener = threading.Thread(target=lambda: boxes.append(context.__enter__()))
    opener.start()
    opener.join()
    try:
        time.sleep(0.2)
        assert says(boxes[0], "echo here") == "here"
    finally:
        context.__exit__(None, None, None)


# ---- environments


def builds_environments_and_keeps_them(backend: SandboxBackend, spec: SandboxSpec) -> None:
    """Leaves one small environment behind, which a second call finds."""
    key = "conformance-1"
    with tempfile.TemporaryDirectory(prefix="selfplay-") as folder:
        log = Path(folder) / "log.txt"
        reference = backend.build_environment(key, "echo built > /opt/env/word", 600.0, log)
        assert backend.environment_exists(key), f"{key} was built, and environment_exists says no"
        assert backend.environment_reference(key) == reference, "environment_reference names another one"
        again = backend.build_environment(key, "exit 1", 600.0, log)
        assert again == reference, "an environment that exists is built again"
        with backend.open(replace(spec, environment=reference)) as box:
            assert says(box, "cat /opt/env/word; command -v python") == "built\n/opt/env/bin/python"
            assert box.run("touch /opt/env/more").exit_code != 0, "a sandbox may write to /opt/env"
        try:
            backend.build_environment("conformance-failing", "echo the reason; exit 3", 600.0, log)
        except EnvironmentBuildError as error:
            assert "the reason" in error.log_tail, "log_tail has not what the script printed last"
        else:
            raise AssertionError("a script that fails raises no EnvironmentBuildError")
        assert "the reason" in log.read_text(), "the log has not what the script printed"
    assert not backend.environment_exists("conformance-failing"), "a failed build left an environment"


ALL_CHECKS: tuple[Check, ...] = (
    keeps_folder_and_exported_variables,
    reports_exit_codes_and_signals,
    passes_bytes_through,
    lets_background_processes_live,
    cuts_output_while_it_streams,
    a_timeout_leaves_no_process_and_keeps_the_workspace,
    the_server_cannot_be_touched,
    a_memory_bomb_ends_itself_only,
    a_fork_bomb_is_contained,
    disks_and_files_are_bounded,
    has_no_network,
    runs_without_privileges,
    all_else_is_read_only,
    hides_what_the_spec_names,
    sandboxes_do_not_see_each_other,
    starts_from_a_clean_environment,
    files_go_in_and_out,
    bad_archives_are_refused,
    closing_is_idempotent_and_final,
    many_work_at_once,
    outlives_the_thread_that_opened_it,
)


def failed_checks(backend: SandboxBackend, spec: SandboxSpec) -> dict[str, str]:
    """Name -> what went wrong, of each check that fails. Empty if the back end keeps the contract."""
    return {check.__name__: problem for check in ALL_CHECKS if (problem := problem_of(check, backend, spec))}


def problem_of(check: Check, backend: SandboxBackend, spec: SandboxSpec) -> str:
    """What went wrong in a check, "" if it passed."""
    try:
        check(backend, spec)
    except (AssertionError, SandboxError) as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        return str(error) or f"not true: {line}"
    except Exception as error:  # a back end of one's own may raise anything
        return f"{type(error).__name__}: {error}"
    return ""
