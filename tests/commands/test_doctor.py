import io
import os
import time
from pathlib import Path

from rich.console import Console

from selfplay.commands import doctor
from selfplay.commands.doctor import Finding


def aged(path: Path, folder: bool = True) -> Path:
    if folder:
        path.mkdir(parents=True)
        (path / "inside").write_text("x")
        os.utime(path / "inside", (1, 1))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    os.utime(path, (1, 1))
    return path


def test_scratch_that_nobody_touched_for_a_day_is_stale(tmp_path):
    old = aged(tmp_path / "tmp" / "selfplay-apply-ab12cd_8")
    half = aged(tmp_path / "cache" / "git" / ".new-abcdefgh")
    facts = aged(tmp_path / "cache" / "environments" / "x" / ".facts-abcd", folder=False)
    assert set(doctor.stale_paths(tmp_path / "tmp", tmp_path / "cache")) == {old, half, facts}


def test_what_may_be_in_use_or_is_not_ours_is_never_stale(tmp_path):
    temporary = tmp_path / "tmp"
    (temporary / "selfplay-fresh123").mkdir(parents=True)
    aged(temporary / "selfplay-in_use12")
    (temporary / "selfplay-in_use12" / "inside").touch()
    aged(temporary / "selfplay-my notes")
    aged(temporary / "other-ab12cd_8")
    aged(tmp_path / "elsewhere")
    (temporary / "selfplay-linked12").symlink_to(tmp_path / "elsewhere")
    assert list(doctor.stale_paths(temporary, tmp_path / "cache", now=time.time() + 10)) == []


def test_cleaning_removes_stale_folders_and_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    old = aged(tmp_path / "tmp" / "selfplay-eval-ab12cd_8")
    assert str(old) in doctor.clean()
    assert not old.exists()


def test_a_package_that_is_missing_or_of_another_version_comes_with_a_command():
    findings = {
        f.name: f
        for f in doctor._packages(
            requires=["rich", "no-such-package-of-ours>=2", "pytest<1", 'colorama; extra == "dev"']
        )
    }
    assert not findings["packages"].ok
    assert findings["packages"].detail.startswith("rich ")
    assert findings["no-such-package-of-ours"].remedy == "pip install 'no-such-package-of-ours>=2'"
    assert "; pytest<1 is needed" in findings["pytest"].detail
    assert "colorama" not in findings


def test_a_checkout_that_was_not_installed_is_reported_with_the_remedy():
    (finding,) = doctor._packages("no-such-distribution-of-ours")
    assert (finding.ok, finding.remedy) == (False, "make setup")


def test_an_old_python_is_named():
    assert doctor._python((3, 9, 2)).detail.startswith("3.9.2")
    assert not doctor._python((3, 9, 2)).ok
    assert doctor._python().ok


def test_little_memory_is_reported_with_the_settings_to_lower(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 500000 kB\n")
    finding = doctor._memory(meminfo)
    assert not finding.ok
    assert "train.episodes_in_flight" in finding.remedy
    assert doctor._memory(tmp_path / "none").ok


def test_a_folder_that_does_not_exist_yet_is_measured_where_it_will_be(tmp_path):
    (finding,) = doctor._disk({"runs": tmp_path / "not" / "yet"})
    assert finding.ok
    assert "GiB free" in finding.detail


def test_a_policy_that_is_not_there_is_named(tmp_path):
    finding = doctor._policy(str(tmp_path / "none"))
    assert not finding.ok
    assert str(tmp_path / "none") in finding.detail
    assert doctor._policy("someone/model").ok


def test_only_what_is_required_decides_the_exit_code():
    optional = Finding("docker sandboxes", False, "no engine", required=False)
    assert doctor.exit_code([optional, Finding("git", True, "2.39")]) == 0
    assert doctor.exit_code([optional, Finding("policy", False, "none", "selfplay warm-start")]) == 1


def test_findings_are_printed_with_their_remedy_and_never_as_markup():
    console = Console(file=io.StringIO(), width=80)
    doctor.print_findings([Finding("policy", False, "no [red]folder[/red]", "selfplay warm-start")], console)
    text = console.file.getvalue()
    assert "no [red]folder[/red]" in text
    assert "→ selfplay warm-start" in text
    assert "1 thing(s) to fix" in text
