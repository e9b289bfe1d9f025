import io
import json
import os

import pytest
from rich.console import Console
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.curriculum.store import Store
from selfplay.errors import RunError
from selfplay.orchestrator.run_folder import RunFolder, found_runs
from selfplay.viewing.runs import differing_settings, flat_settings, run_facts, show_runs
from store_rows import recorded_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    for age, (name, settings) in enumerate((("new", {"seed": 2}), ("old", {"train": {"updates": 2}}))):
        run = recorded_run(root / name)
        (run / "config.json").write_text(json.dumps({"run": {"name": name}, **settings}))
        os.utime(run / "config.json", (1e9 - age, 1e9 - age))
    return root


def test_runs_are_listed_with_their_progress_the_newest_last(runs):
    old, new = run_facts(found_runs(runs))
    assert (old.run, old.updates, old.planned, old.bugs, old.state) == ("old", 2, 2, 3, "done")
    assert (new.run, new.updates, new.state) == ("new", 2, "stopped")


def test_only_settings_that_differ_are_shown(runs):
    old, new = run_facts(found_runs(runs))
    assert set(old.settings) == {"seed", "train.updates"}
    assert (old.settings["train.updates"], old.settings["seed"], new.settings["seed"]) == (2, 0, 2)


def test_a_run_that_is_being_written_is_playing(runs):
    with Store.open(runs / "new" / "selfplay.db"):
        assert [facts.state for facts in run_facts(found_runs(runs))] == ["done", "playing"]


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(runs):
    (runs / "old" / "selfplay.db").write_text("no database")
    (runs / "new" / "config.json").write_text('{"train": {"updates": "six"}}')
    states = {facts.run: facts.state for facts in run_facts(found_runs(runs))}
    assert states["old"].startswith("unreadable: ") and "damaged" in states["old"]
    assert "train.updates" in states["new"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_list_of_runs_fits_its_width(runs, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show_runs(found_runs(runs), console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= width
    assert lines[-1].strip() == "selfplay show new"


def test_settings_are_compared_by_their_full_names():
    flat = flat_settings({"train": {"updates": 8}, "seed": 1})
    assert flat == {"train.updates": 8, "seed": 1}
    assert differing_settings({"a": flat, "b": {"seed": 1}}) == {"a": {"train.updates": 8}, "b": {}}


def test_no_runs_is_an_error_with_the_command_that_starts_one(tmp_path):
    result = CliRunner().invoke(app, ["runs", "--runs", str(tmp_path / "none")])
    assert isinstance(result.exception, RunError)
    assert "selfplay train --repos" in str(result.exception)


@pytest.mark.parametrize("command", ["show", "inspect-bugs", "episodes"])
def test_a_command_that_picks_the_newest_run_names_it_beside_its_output(runs, command):
    result = CliRunner().invoke(app, [command, "--json"])
    assert result.exit_code == 0, result.output
    assert "Run new, the newest in runs" in result.stderr
    json.loads(result.stdout)
    assert "newest" not in CliRunner().invoke(app, [command, "old", "--json"]).stderr


def test_show_prints_the_summary_again_and_as_json(runs):
    text = CliRunner().invoke(app, ["show", "old"]).stdout
    assert "Run old" in text and "Accepted bugs" in text and "3 of 5 artifacts were rejected" in text
    data = json.loads(CliRunner().invoke(app, ["show", "old", "--json"]).stdout)
    assert (
        data["run"] == "old"
        and data["judged"] == 5
        and data["rejected"] == {"parser": 2, "inverse_mutation": 1}
    )
    assert sum(row["bugs"] for row in data["bugs"]) == 3
    assert data["seconds"] == {"injecting": 121.0, "solving": 180.0}
    assert [row["update"] for row in data["updates"]] == [1, 2]


def test_show_works_while_the_run_plays(runs):
    with Store.open(RunFolder(runs / "old").database):
        assert "Accepted bugs" in CliRunner().invoke(app, ["show", "old"]).stdout


def test_the_time_table_has_what_an_unfinished_update_took(runs):
    with Store.open(runs / "old" / "selfplay.db") as store:
        store.begin_update(3)
        store.set_update_metrics(3, json.dumps({"seconds/solving": 20.0}))
    data = json.loads(CliRunner().invoke(app, ["show", "old", "--json"]).stdout)
    assert data["seconds"]["solving"] == 200.0
    assert [row["update"] for row in data["updates"]] == [1, 2]
