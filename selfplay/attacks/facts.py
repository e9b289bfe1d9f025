"""What code can read about its sandbox, printed by a script, so that two sandboxes can be compared.

Leaves out what is new in each sandbox by its nature: random ids, times, the numbers of devices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from selfplay.attacks.probes import python

FACTS = r"""
import json, os, re, resource, stat, subprocess

def text(path):
    try:
        return open(path, errors="replace").read()
    except OSError as error:
        return error.strerror

def plain(words):  # without random ids and numbers
    return re.sub(r"[0-9A-Z]{26}|[0-9a-f]{12,}|\b\d{5,}\b|(?<=bindfile)\w{6}", "#", words)

def kind(path):
    try:
        found = os.lstat(path)
    except OSError as error:
        return error.strerror
    return [stat.filemode(found.st_mode), found.st_uid == os.getuid()]

def below(folder):
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return sorted(re.sub(r"[0-9a-f]{38,}", "#", path) for path in paths)

def listed(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        return error.strerror

def limits():
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}

def mounts():
    lines = [line.split() for line in text("/proc/self/mountinfo").splitlines()]
    # Sorted: the engine mounts in any order.
    return sorted([line[4], line[5], plain(" ".join(line[line.index("-") + 1:]))] for line in lines)

SHOWN = "/ /tmp /submit /testbed /dev /dev/shm /opt /etc /run /var /sys /home /root"
GIT = "/testbed/.git /testbed/.git/index /testbed/.git/HEAD"
LOOKED_AT = f"/testbed /testbed/heron /submit /tmp /opt/env /dev/null {GIT}"
status = dict(line.split(":", 1) for line in text("/proc/self/status").splitlines())
wanted = ("NoNewPrivs", "Seccomp", "Seccomp_filters", "CapEff", "SigBlk", "SigIgn", "SigQ", "Umask")
variables = {name: value for name, value in os.environ.items() if name != "_"}
seed = variables.pop("PYTHONHASHSEED", "")
print("FACTS " + json.dumps({
    "variables": variables,
    "has a hash seed": seed.isdigit(),
    "folder": os.getcwd(),
    "limits": limits(),
    "processors": sorted(os.sched_getaffinity(0)),
    "nice": os.nice(0),
    "host": os.uname().nodename,
    "input": [os.readlink("/proc/self/fd/0"), os.isatty(0)],
    "descriptors": len(os.listdir("/proc/self/fd")),
    "user": plain(subprocess.run(["id", "-un"], capture_output=True, text=True).stdout),
    "first process": [text("/proc/1/comm"), plain(text("/proc/1/cmdline"))],
    "parent": text(f"/proc/{os.getppid()}/cmdline"),
    "processes": sorted(text(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdigit()),
    "status": {name: status.get(name) for name in wanted},
    "groups": plain(text("/proc/self/cgroup")),
    "score": text("/proc/self/oom_score_adj"),
    "mounts": mounts(),
    "folders": {name: listed(name) for name in SHOWN.split()},
    "kinds": {name: kind(name) for name in LOOKED_AT.split()},
    "git": below("/testbed/.git"),
    "git settings": text("/testbed/.git/config"),
    "clock of the folder": os.stat("/testbed/heron").st_mtime % 1 == 0,
}, sort_keys=True))
"""
FACTS_SCRIPT = f"{python(FACTS)}\n"


def facts_of(log: str) -> Mapping[str, object]:
    """What FACTS_SCRIPT printed. Raises ValueError with the log if it failed."""
    found = re.search(r"^FACTS (.*)$", log, re.MULTILINE)
    if found is None:
        raise ValueError(f"the script printed no facts: {log[-500:]}")
    facts: Mapping[str, object] = json.loads(found[1])
    return facts
