"""`selfplay doctor`: reports what this machine lacks for self-play, and the command that fixes it.

It also attacks the machine's own sandboxes, and removes what killed runs left behind. It changes nothing
unless it is asked to clean. Invariant: cleaning removes only sandboxes of dead processes and files that are
unchanged for a day, because other runs may use the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfplay import DISTRIBUTION
from selfplay.commands.accelerators import accelerators
from selfplay.commands.findings import Finding
from selfplay.commands.prepared_repositories import prepared_repositories
from selfplay.config import Config
from selfplay.errors import SelfplayError
from selfplay.repositories.checkouts import cache_root

if TYPE_CHECKING:
    from selfplay.attacks import Report

GIB = 1 << 30
MIN_FREE_DISK = 4 * GIB
MIN_FREE_MEMORY = 2 * GIB
INDEX_TIMEOUT_S = 20
INDEX_PROBE = "iniconfig"  # a small package without dependencies, which pytest needs anyway
STALE_AFTER_S = 24 * 3600.0
SCRATCH = re.compile(r"selfplay-([a-z]+-)?[a-z0-9_]{8}")  # what tempfile makes of our prefixes
UNFINISHED = (".new-*", ".facts-*")


def main(console: Console, clean: bool = False, as_json: bool = False, config: Config | None = None) -> int:
    """`selfplay doctor`. Returns 0 if every required finding is ok, else 1. clean: remove leftovers first."""
    removed = sweep_leftovers() if clean else []
    findings = examine(config or Config())
    if as_json:
        print(
            json.dumps({"findings": [asdict(finding) for finding in findings], "removed": removed}, indent=2)
        )
    else:
        for item in removed:
            console.print(Text(f"removed {item}"), soft_wrap=True)
        if clean and not removed:
            console.print("nothing was left behind")
        print_findings(findings, console)
    return exit_code(findings)


def attack(console: Console, sandbox: str = "auto", as_json: bool = False) -> int:
    """`selfplay doctor --attack`. Returns 0 if every attack ran and failed, else 1. Takes some minutes."""
    from selfplay.attacks import ALL_ATTACKS, RESIDUAL_RISK, open_ground, run_attacks
    from selfplay.sandbox import open_backend

    backend, why = open_backend(sandbox)
    progress = Console(stderr=True) if as_json else console
    progress.print(f"sandboxes: {why}", highlight=False)
    reports = []
    with (
        progress.status("preparing a small repository to attack") as status,
        open_ground(backend, cache_root()) as ground,
    ):
        status.update(f"1 of {len(ALL_ATTACKS)}: {ALL_ATTACKS[0].title}")
        for report, following in zip(run_attacks(ALL_ATTACKS, ground), [*ALL_ATTACKS[1:], None], strict=True):
            reports.append(report)
            if not progress.is_terminal:
                line = f"{report.status}: {report.id}, {report.duration_s:.1f} s"
                progress.print(Text(line), soft_wrap=True)
            if following is not None:
                status.update(f"{len(reports) + 1} of {len(ALL_ATTACKS)}: {following.title}")
    if as_json:
        print(
            json.dumps(
                {
                    "sandbox": backend.name,
                    "attacks": [report.to_json() for report in reports],
                    "residual": RESIDUAL_RISK,
                },
                indent=2,
            )
        )
    else:
        print_attacks(reports, console)
        console.print(Text(RESIDUAL_RISK, style="dim"))
    return int(any(report.status != "held" for report in reports))


def print_attacks(reports: list[Report], console: Console) -> None:
    """Print a row for each attack, and how many held."""
    from selfplay.agent.observations import make_harmless

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("row", justify="right")
    table.add_column("attack", overflow="fold", ratio=3)
    table.add_column("", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what was seen", overflow="fold", ratio=4)
    styles = {"held": "green", "NOT held": "bold red", "machine": "yellow"}
    for report in reports:
        shown = Text(make_harmless(report.evidence), style="dim" if report.status == "held" else "")
        table.add_row(
            str(report.row),
            Text(report.title),
            Text(report.status, styles[report.status]),
            f"{report.duration_s:.1f}",
            shown,
        )
    console.print(table, highlight=False)
    held = sum(report.status == "held" for report in reports)
    broken = sum(report.status == "NOT held" for report in reports)
    verdict = (
        f"{held} of {len(reports)} attacks held, in {sum(report.duration_s for report in reports):.0f} s"
    )
    if broken:
        verdict += f"; {broken} got through"
    if held + broken < len(reports):
        verdict += f"; {len(reports) - held - broken} could not be carried out on this machine"
    console.print(Text(verdict, style="green" if held == len(reports) else "bold red"))


def exit_code(findings: list[Finding]) -> int:
    """1 if a required finding is not ok, else 0."""
    return int(any(finding.required and not finding.ok for finding in findings))


def examine(config: Config) -> list[Finding]:
    """Check everything. Takes some seconds, because it opens sandboxes and asks the package index."""
    return [
        _python(),
        *_packages(),
        _git(),
        *_sandboxes(config.sandbox.type),
        *_disk({"cache": cache_root(), "runs": Path(config.run.folder)}),
        _memory(),
        *accelerators(config),
        _package_index(),
        _policy(config.policy.model),
        _leftovers(),
        *prepared_repositories(cache_root() / "environments" / "facts"),
    ]


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print a row for each finding with its remedy, and whether self-play can run."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = (
            Text("✓", style="green")
            if finding.ok
            else Text("✗", style="red")
            if finding.required
            else Text("–", style="yellow")
        )
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n→ {finding.remedy}", style="cyan")
        table.add_row(mark, Text(finding.name), detail)
    console.print(table, highlight=False)
    missing = sum(finding.required and not finding.ok for finding in findings)
    verdict = (
        Text(f"{missing} thing(s) to fix", style="red")
        if missing
        else Text("ready: selfplay train can run here", style="green")
    )
    console.print(verdict)


# -- findings ----------------------------------------------------------------------------------------


def _python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    text = ".".join(map(str, version))
    if version >= (3, 11):
        return Finding("python", True, text)
    return Finding("python", False, f"{text}; 3.11 or later is needed", "make PYTHON=python3.11 setup")


def _packages(distribution: str = DISTRIBUTION, requires: list[str] | None = None) -> list[Finding]:
    """One finding for all that fit, then one for each that is missing or has a wrong version."""
    if requires is None:
        try:
            requires = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:
            return [
                Finding("packages", False, f"{distribution} is not installed in {sys.prefix}", "make setup")
            ]
    found: list[str] = []
    wrong: list[Finding] = []
    for requirement in map(Requirement, requires):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(
                Finding(
                    requirement.name,
                    False,
                    f"missing; {requirement} is needed",
                    f"pip install '{requirement}'",
                )
            )
            continue
        # A local label, as in torch 2.13.0+cpu, does not make another version, and `contains` ignores it.
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(
                Finding(
                    requirement.name,
                    False,
                    f"{version}; {requirement} is needed",
                    f"pip install '{requirement}'",
                )
            )
        else:
            found.append(f"{requirement.name} {version}")
    return [
        Finding("packages", not wrong, ", ".join(found) or "none fits", "" if not wrong else "make setup"),
        *wrong,
    ]


def _git() -> Finding:
    try:
        result = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("git", False, f"does not run: {error}", "apt-get install git")
    return Finding("git", True, result.stdout.strip())


def _sandboxes(wanted: str) -> list[Finding]:
    """A finding for each backend. Only the one in `sandbox.type` is required; "auto" requires any one."""
    from selfplay.sandbox import BACKENDS, open_backend

    refusals: dict[str, str] = {}
    lacks: dict[str, str] = {}
    for kind in BACKENDS:
        try:
            lacks[kind] = open_backend(kind)[0].capabilities.lacks
        except SelfplayError as error:
            refusals[kind] = str(error)
    some = len(refusals) < len(BACKENDS)
    findings = []
    for kind in BACKENDS:
        required = wanted == kind or (wanted == "auto" and not some)
        if kind in refusals:
            what, _, remedy = refusals[kind].partition(". ")
            findings.append(
                Finding(f"{kind} sandboxes", False, what, remedy if required or not some else "", required)
            )
        else:
            what = "; ".join(filter(None, ("a sandbox opens", lacks[kind])))
            findings.append(Finding(f"{kind} sandboxes", True, what, required=required))
    return findings


def _disk(folders: dict[str, Path]) -> list[Finding]:
    """Free space and write access of each folder, measured at its nearest parent that exists. Keys: names."""
    findings = []
    for name, path in folders.items():
        existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        remedy = (
            ""
            if free >= MIN_FREE_DISK
            else f"free some: `selfplay doctor --clean` removes leftovers, and you may empty {path}"
        )
        if name == "cache" and remedy:
            remedy += ", or set SELFPLAY_CACHE to a larger disk"
        problem = "is not writable" if not os.access(existing, os.W_OK) else ""
        if not existing.is_dir():
            problem = "is a file"
        if problem:
            choice = "SELFPLAY_CACHE" if name == "cache" else "run.folder"
            remedy = f"change that, or let {choice} name another folder"
            findings.append(Finding(f"disk for {name}", False, f"{existing} {problem}", remedy))
            continue
        findings.append(
            Finding(f"disk for {name}", not remedy, f"{free / GIB:.1f} GiB free at {path}", remedy)
        )
    return findings


def _memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return Finding("memory", True, "unknown on this system", required=False)
    enough = available >= MIN_FREE_MEMORY
    remedy = (
        ""
        if enough
        else "close other programs, or lower train.episodes_in_flight, engine.max_batch "
        "and trainer.batch_tokens"
    )
    return Finding("memory", enough, f"{available / GIB:.1f} GiB available", remedy)


def _package_index(package: str = INDEX_PROBE) -> Finding:
    """Download a small package with pip and its own configuration, as builds do. Installs nothing."""
    name = "package index"
    remedy = (
        "connect to a network, or point pip to an index: pip config set global.index-url URL "
        "(environments that are already built need none)"
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    with tempfile.TemporaryDirectory(prefix="selfplay-index-") as folder:
        command += ["--retries", "0", "--timeout", str(INDEX_TIMEOUT_S // 2), "--dest", folder, package]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=INDEX_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Finding(name, False, f"no answer within {INDEX_TIMEOUT_S} s", remedy)
    if result.returncode == 0:
        return Finding(name, True, "answers")
    lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    return Finding(
        name, False, lines[-1] if lines else f"pip ended with exit code {result.returncode}", remedy
    )


def _policy(model: str) -> Finding:
    from selfplay.agent.chat import policy_path

    try:
        path = policy_path(model)
    except SelfplayError as error:
        what, _, remedy = str(error).partition(". ")
        return Finding("policy", False, what, remedy)
    if not Path(path).is_dir():
        return Finding("policy", True, f"{model}; transformers finds or downloads it at first use")
    size = sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())
    return Finding("policy", True, f"{model}, {size / 1e6:.1f} MB")


def _leftovers() -> Finding:
    stale = [str(path) for path in stale_paths()]
    if not stale:
        return Finding("leftovers", True, "no stale temporary folder")
    return Finding(
        "leftovers",
        False,
        f"{len(stale)}, for instance {stale[0]}",
        "selfplay doctor --clean",
        required=False,
    )


# -- cleaning ----------------------------------------------------------------------------------------


def clean() -> list[str]:
    """Remove the sandboxes of dead processes, of each backend that works here, and stale paths.

    Returns a line for each thing that it removed.
    """
    from selfplay.sandbox import BACKENDS, open_backend

    removed: list[str] = []
    for kind in BACKENDS:
        try:
            removed += open_backend(kind)[0].sweep()
        except SelfplayError:
            continue  # this backend does not work here, so there is nothing to remove through it
    for path in stale_paths():
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue
        removed.append(str(path))
    return removed


sweep_leftovers: Callable[[], list[str]] = clean  # `main` has an argument named `clean`


def stale_paths(
    temporary: Path | None = None, cache: Path | None = None, now: float | None = None
) -> Iterator[Path]:
    """Scratch folders of selfplay and unfinished cache entries, if this user owns them and they are old.

    Old: neither the path nor a direct child changed for STALE_AFTER_S. Symbolic links are never stale.

    temporary  where scratch folders are; None: the system's folder
    cache      None: `cache_root()`
    now        seconds since the epoch; None: the present
    """
    temporary, cache, now = (
        temporary or Path(tempfile.gettempdir()),
        cache or cache_root(),
        time.time() if now is None else now,
    )
    candidates = [path for path in sorted(temporary.glob("selfplay-*")) if SCRATCH.fullmatch(path.name)]
    for pattern in UNFINISHED:
        candidates += [path for depth in ("", "*/", "*/*/") for path in sorted(cache.glob(depth + pattern))]
    for path in candidates:
        try:
            info = path.lstat()
            newest = (
                max([info.st_mtime, *(child.lstat().st_mtime for child in path.iterdir())])
                if path.is_dir()
                else info.st_mtime
            )
        except OSError:
            continue
        if not stat.S_ISLNK(info.st_mode) and info.st_uid == os.getuid() and now - newest > STALE_AFTER_S:
            yield path
