"""What `benchmarks.overlap` makes of the rows of a run."""

from __future__ import annotations

import pytest

from benchmarks import overlap


def row(update: int, **values: float) -> dict[str, float]:
    return {"update": update, "injector/episodes": 4, "solver/episodes": 8, **values}


def test_playing_in_turn_and_playing_ahead_are_counted_alike() -> None:
    in_turn = overlap.figures(
        [
            row(2, **{"seconds/injecting": 4.0, "seconds/solving": 6.0, "seconds/training": 9.0}),
            row(3, **{"seconds/injecting": 2.0, "seconds/solving": 8.0, "seconds/training": 11.0}),
        ]
    )
    assert (in_turn.episodes, in_turn.wall_s) == (24, 40.0)
    assert (in_turn.playing_s, in_turn.training_s) == (10.0, 10.0)
    ahead = overlap.figures([row(2, **{"seconds/playing": 1.0, "seconds/training": 9.0})])
    assert (ahead.wall_s, ahead.playing_s) == (10.0, 0.0)
    assert ahead.an_hour / in_turn.an_hour == pytest.approx(2.0)


def test_too_few_updates_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["overlap", "--updates", "2"])
    with pytest.raises(SystemExit):
        overlap.main()
    assert "--updates 2: at least 3" in capsys.readouterr().err
