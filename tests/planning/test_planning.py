"""The simulation against figures worked out by hand; reading of runs; plans and their assumptions."""

import io
import json
import math
import random
import re
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.commands.plan import PlanOptions, plan_from, run_plan
from selfplay.curriculum.rows import AttemptRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.statistics import Estimate
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.planning.check import check_run
from selfplay.planning.fitting import Timing, fit_server, fit_trainer
from selfplay.planning.forecast import Forecast
from selfplay.planning.hardware import (
    Gpu,
    ModelSize,
    ServerSpeed,
    TrainerSpeed,
    server_speed,
    sync_seconds,
    trainer_speed,
)
from selfplay.planning.paper import (
    PaperAssumptions,
    paper_assumptions,
    paper_sample,
    paper_workload,
    usual_gpus,
)
from selfplay.planning.recorded import read_run
from selfplay.planning.scenario import Cluster, Rules
from selfplay.planning.search import Candidate, Plan, PlanRequest, make_plan
from selfplay.planning.simulation import simulate
from selfplay.planning.simulators import Simulators, in_turn
from selfplay.planning.workload import EpisodeMeans, EpisodeShape, GroupShape, Stretch, Workload
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.plan import figure_text, plan_data, show_check, show_plan
from store_rows import a_bug, a_group, an_episode

STEADY = ServerSpeed(most=4, fixed_s=0.01)  # 0.01 s a token, however many requests run
TRAINER = TrainerSpeed(fixed_s=10.0)


def episode(
    sampled: float = 100,
    act_s: float = 1.0,
    turns: int = 1,
    open_s: float = 0.0,
    judge_s: float = 0.0,
    prefill: float = 0.0,
):
    return EpisodeShape(open_s, tuple(Stretch(prefill, sampled, act_s) for _ in range(turns)), judge_s, turns)


def solvers(*episodes: EpisodeShape, has_gradient: bool = True) -> GroupShape:
    return GroupShape(Role.SOLVER, episodes, has_gradient=has_gradient)


def of_groups(*groups: GroupShape) -> Workload:
    return Workload("test", (), groups, replays=0.0)


def a_cluster(**changes) -> Cluster:
    return replace(
        Cluster(servers=1, server=STEADY, trainer=TRAINER, slots=1, in_flight=1, sync_s=2.0), **changes
    )


def rules(**changes) -> Rules:
    return replace(Rules(max_lag=0, batch_tokens=100, updates=5, warmup=2), **changes)


def mixed_workload() -> Workload:
    """Short and long episodes, groups without a gradient, injectors whose bugs are played."""
    short, long = (
        episode(sampled=40, turns=2, judge_s=0.5, prefill=20),
        episode(sampled=60, turns=6, act_s=2.0, judge_s=1.0, prefill=20),
    )
    injectors = (
        GroupShape(Role.INJECTOR, (short, long), bugs=1),
        GroupShape(Role.INJECTOR, (short, short), bugs=2),
    )
    return Workload(
        "mixed",
        injectors,
        (solvers(short, long), solvers(long, long), solvers(short, short, has_gradient=False)),
        replays=0.5,
    )


def mixed_cluster(**changes) -> Cluster:
    speed = ServerSpeed(most=8, memory_s=0.01, memory_each_s=0.002, read_s=0.0005)
    base = Cluster(
        servers=2, server=speed, trainer=TrainerSpeed(1.0, 0.0005), slots=24, in_flight=16, sync_s=0.5
    )
    return replace(base, **changes)


MIXED_RULES = Rules(max_lag=4, batch_tokens=8000, updates=30, warmup=8)


# -- figures worked out by hand


def test_episodes_one_after_the_other_take_the_sum_of_their_parts():
    forecast = simulate(a_cluster(), of_groups(solvers(episode(sampled=100, act_s=1.0))), rules())
    # 1 s of sampling, 1 s in the sandbox, 10 s of training, 2 s of sync.
    assert forecast.update_seconds == pytest.approx([14.0] * 5)
    assert forecast.trained_per_hour == pytest.approx(3600 / 14)


def test_idle_shares_of_a_synchronous_run_are_the_seconds_of_the_others():
    forecast = simulate(
        a_cluster(), of_groups(solvers(episode(sampled=100, act_s=1.0, judge_s=2.0))), rules()
    )
    assert forecast.trainer_idle == pytest.approx(4 / 16)  # while it is played and judged
    assert forecast.trainer_sync == pytest.approx(2 / 16)
    assert forecast.rollout_idle == pytest.approx(15 / 16)  # all but sampling
    assert forecast.rollout_load == pytest.approx(1 / 16 / 4)  # one of four requests
    assert forecast.sandbox_idle == pytest.approx(12 / 16)
    assert forecast.sandbox_running == pytest.approx(3 / 16)


def test_a_slow_trainer_sets_the_pace_when_play_overlaps():
    forecast = simulate(a_cluster(), of_groups(solvers(episode())), rules(max_lag=2, warmup=5))
    assert forecast.update_seconds == pytest.approx([12.0] * 5)
    assert forecast.trainer_idle == pytest.approx(0.0)


def test_slow_play_sets_the_pace_when_it_overlaps():
    fast = a_cluster(trainer=TrainerSpeed(fixed_s=1.0), sync_s=0.0)
    forecast = simulate(
        fast,
        of_groups(solvers(episode(sampled=400, act_s=1.0))),
        rules(max_lag=2, batch_tokens=400, warmup=5),
    )
    assert forecast.update_seconds == pytest.approx([5.0] * 5)
    assert forecast.trainer_idle == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("speed", "seconds"),
    [
        (ServerSpeed(most=4, fixed_s=0.01), 1.0),  # four at once, none slows another
        (ServerSpeed(most=4, compute_each_s=0.01), 4.0),  # four at once share what one server computes
        (ServerSpeed(most=2, fixed_s=0.01), 2.0),  # two wait until two are done
        (ServerSpeed(most=4, fixed_s=0.01, read_s=0.001), 1.2),  # 4 x 50 tokens are read first
    ],
)
def test_four_requests_on_one_server(speed, seconds):
    cluster = a_cluster(server=speed, trainer=TrainerSpeed(), sync_s=0.0, slots=4, in_flight=4)
    group = solvers(*[episode(sampled=100, act_s=0.0, prefill=50)] * 4)
    assert simulate(cluster, of_groups(group), rules(batch_tokens=600)).update_s == pytest.approx(seconds)


def test_two_servers_take_half_of_the_requests_each():
    cluster = a_cluster(
        server=ServerSpeed(most=4, compute_each_s=0.01),
        servers=2,
        trainer=TrainerSpeed(),
        sync_s=0.0,
        slots=4,
        in_flight=4,
    )
    forecast = simulate(cluster, of_groups(solvers(*[episode(act_s=0.0)] * 4)), rules(batch_tokens=400))
    assert forecast.update_s == pytest.approx(2.0)


def test_a_conversation_is_prefilled_again_after_new_weights():
    """A sync in the middle of an episode: its 100 + 10 tokens are prefilled again, at 0.1 s each."""
    speed = ServerSpeed(most=4, fixed_s=0.01, read_s=0.1)
    shape = EpisodeShape(0.0, (Stretch(10, 100, 0.0), Stretch(0, 100, 0.0)), 0.0, 2)
    work = of_groups(solvers(shape))
    cluster = a_cluster(server=speed, trainer=TrainerSpeed(fixed_s=2.5), sync_s=0.0)
    kept = simulate(replace(cluster, clears_cache=False), work, rules(max_lag=1, batch_tokens=210, warmup=3))
    read = simulate(cluster, work, rules(max_lag=1, batch_tokens=210, warmup=3))
    assert kept.update_s == pytest.approx(3.0)
    assert read.update_s > 3.0 + 1.0  # at least the 10 tokens of the prompt


def test_training_counts_tokens_and_their_squares():
    assert TrainerSpeed(1.0, 0.1, 0.01).seconds(tokens=30, squares=500) == pytest.approx(1 + 3 + 5)


def test_with_few_judges_verdicts_wait():
    group = solvers(*[episode(sampled=100, act_s=0.0, judge_s=3.0)] * 4)
    cluster = a_cluster(trainer=TrainerSpeed(), sync_s=0.0, slots=8, in_flight=4)
    assert simulate(cluster, of_groups(group), rules(batch_tokens=400)).update_s == pytest.approx(4.0)
    assert simulate(
        replace(cluster, judges=1), of_groups(group), rules(batch_tokens=400)
    ).update_s == pytest.approx(13.0)


def test_the_phases_of_the_loop_follow_each_other():
    injectors = GroupShape(Role.INJECTOR, (episode(sampled=100, act_s=1.0, judge_s=1.0),), bugs=1)
    work = Workload("phases", (injectors,), (solvers(episode(sampled=200, act_s=1.0)),), 0.0)
    plan = rules(kind="phases", plans=((1, 2),), second_order_s=(4.0,), warmup=0)
    forecast = simulate(a_cluster(slots=2, in_flight=1), work, plan)
    assert forecast.phases_s == pytest.approx(
        {"injecting": 3.0, "solving": 6.0, "second order": 4.0, "training": 12.0}
    )
    assert forecast.update_s == pytest.approx(25.0)


# -- properties that hold for any figures


@pytest.mark.parametrize(
    "more",
    [
        {"servers": 4},
        {"slots": 48, "in_flight": 32},
        {"trainer": TrainerSpeed(0.5, 0.00025)},
        {"sync_s": 0.0},
    ],
)
def test_more_of_anything_never_makes_it_slower(more):
    base = simulate(mixed_cluster(), mixed_workload(), MIXED_RULES)
    better = simulate(mixed_cluster(**more), mixed_workload(), MIXED_RULES)
    # The two forecasts sample different groups, so some noise is left.
    assert better.trained_per_hour >= 0.98 * base.trained_per_hour


@pytest.mark.parametrize("max_lag", [0, 1, 4])
def test_nothing_older_than_max_lag_is_trained_on(max_lag):
    forecast = simulate(mixed_cluster(), mixed_workload(), replace(MIXED_RULES, max_lag=max_lag))
    assert forecast.lag_max <= max_lag
    if max_lag == 0:
        assert forecast.dropped == 0  # a synchronous batch takes all that was played for it


def test_overlapping_gives_more_than_synchronous_play():
    synchronous = simulate(mixed_cluster(), mixed_workload(), replace(MIXED_RULES, max_lag=0))
    overlapped = simulate(mixed_cluster(), mixed_workload(), MIXED_RULES)
    assert overlapped.trained_per_hour > 1.2 * synchronous.trained_per_hour
    assert overlapped.rollout_idle < synchronous.rollout_idle


def test_groups_without_a_gradient_cost_time_and_train_nothing():
    work = of_groups(solvers(episode()), solvers(episode(), has_gradient=False))
    forecast = simulate(
        a_cluster(trainer=TrainerSpeed(), sync_s=0.0), work, rules(max_lag=3, batch_tokens=1000, updates=40)
    )
    assert forecast.episodes_per_hour / forecast.trained_per_hour == pytest.approx(2.0, rel=0.15)


def test_shares_of_idle_time_lie_between_none_and_all():
    forecast = simulate(mixed_cluster(), mixed_workload(), MIXED_RULES)
    shares = (
        forecast.trainer_idle,
        forecast.trainer_sync,
        forecast.rollout_idle,
        forecast.rollout_load,
        forecast.sandbox_idle,
    )
    assert all(0 <= share <= 1 for share in (*shares, forecast.sandbox_running))
    assert forecast.sandbox_idle + forecast.sandbox_running <= 1
    assert forecast.rollout_load <= 1 - forecast.rollout_idle + 1e-9


def test_a_seed_repeats_a_forecast():
    first, again, other = (
        simulate(mixed_cluster(), mixed_workload(), replace(MIXED_RULES, seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_merged_turns_keep_tokens_and_seconds():
    shape = EpisodeShape(1.0, tuple(Stretch(i, 2 * i, 0.5 * i) for i in range(1, 14)), 2.0, 13)
    merged = shape.merged(4)
    assert len(merged.stretches) == 4
    assert (merged.tokens, merged.sampled, merged.sandbox_s, merged.turns) == (
        shape.tokens,
        shape.sampled,
        shape.sandbox_s,
        13,
    )


def test_merging_turns_hardly_changes_the_forecast():
    rng = random.Random(5)

    def random_episode() -> EpisodeShape:
        parts = [
            Stretch(rng.uniform(0, 10), rng.expovariate(0.1), rng.expovariate(3))
            for _ in range(rng.randint(8, 40))
        ]
        return EpisodeShape(0.5, tuple(parts), rng.uniform(0, 2), len(parts))

    work = of_groups(*(solvers(*(random_episode() for _ in range(4))) for _ in range(20)))
    whole = simulate(mixed_cluster(), work, replace(MIXED_RULES, batch_tokens=6000))
    merged = simulate(mixed_cluster(), work.merged(6), replace(MIXED_RULES, batch_tokens=6000))
    assert merged.trained_per_hour == pytest.approx(whole.trained_per_hour, rel=0.03)


# -- formulas


def test_formulas_of_hardware_against_hand_counts():
    gpu = Gpu(
        peak_flops=1e15,
        bandwidth=1e12,
        memory=100e9,
        mfu=0.5,
        read_mfu=0.5,
        mbu=0.5,
        step_s=0.001,
        link=1e10,
        sync_fixed_s=3.0,
    )
    model = ModelSize(parameters=10e9, layers=10, width=1000, kv_width=100)
    assert model.kv_bytes == 2 * 10 * 100 * 2
    assert sync_seconds(gpu, model) == pytest.approx(20e9 / 1e10 + 3)
    flops = 6 * 10e9 * 1000 + 6 * 10 * 1000 * 1000**2  # 6 N T + 6 L d T²
    trainer = trainer_speed(gpu, model, gpus=4)
    assert trainer.seconds(1000, 1000**2) == pytest.approx(flops / (4 * 1e15 * 0.5))
    means = EpisodeMeans(turns=1, tokens=1e5, sampled=1, sandbox_s=0, judge_s=0, context=5e4)
    server = server_speed(gpu, model, 2, means)
    assert server.most == int((2 * 90e9 - 20e9) / (1e5 * 4000))
    assert server.token_s(1) == pytest.approx(0.001 + (20e9 + 5e4 * 4000) / (2 * 1e12 * 0.5))
    crowded = replace(server, memory_each_s=0.0)
    assert crowded.token_s(10_000) == pytest.approx(0.001 + 10_000 * 2 * 10e9 / (2 * 1e15 * 0.5))


def test_a_servers_speed_is_found_again_in_the_timings_of_turns():
    """Waves of n equal turns: a token takes 20 ms + 3 ms per request, a prefilled token 1 ms."""
    timings = []
    for wave, together in enumerate((1, 2, 4, 8, 3, 6)):
        sampled, prefill = 20 + 10 * wave, 5 * (wave % 3)
        seconds = sampled * (0.020 + 0.003 * together) + 0.001 * prefill * together
        timings += [Timing(1000.0 * wave, 1000.0 * wave + seconds, prefill, sampled)] * together
    speed = fit_server(timings, most=32)
    assert [speed.token_s(together) for together in (1, 3, 8)] == pytest.approx(
        [0.023, 0.029, 0.044], rel=1e-3
    )
    assert speed.read_s == pytest.approx(0.001, rel=1e-3)


def test_a_trainers_speed_is_found_again_in_its_updates():
    speed = fit_trainer([(tokens, 0.5 + 0.0001 * tokens) for tokens in (10_000.0, 20_000.0, 45_000.0)])
    assert (speed.fixed_s, speed.token_s) == pytest.approx((0.5, 0.0001))
    falling = fit_trainer([(10_000.0, 3.0), (20_000.0, 2.0)])
    assert falling.token_s == 0  # more tokens never take less time


# -- a run


def a_run(folder: Path, updates: int = 4, later_s: float = 0.0) -> RunFolder:
    """A run folder. Each update has 1 injector group and 2 solver groups of 2 episodes.

    An episode takes 0.5 s to open and has two turns of 1 s + 0.5 s; its verdict takes 1 s. In the second half
    of the updates, solving took `later_s` longer.
    """
    folder.mkdir(parents=True)
    settings = {"train": {"episodes_in_flight": 1, "workers": 1, "group_size": 2}, "max_lag": 3}
    (folder / "config.json").write_text(json.dumps(settings))
    clock = 1_000_000.0
    with Store.open(folder / "selfplay.db") as store, (folder / "metrics.jsonl").open("w") as metrics:
        for update in range(1, updates + 1):
            store.begin_update(update)
            for name, role in (("inj0", "injector"), ("sol0", "solver"), ("sol1", "solver")):
                bug = f"u{update:04d}-inj0-m0-bug" if role == "solver" else ""
                group = a_group(f"u{update:04d}-{name}", role, bug, update=update, size=2)
                store.add_group(group)
                for member in range(2):
                    an_episode_file(folder, group.group_id, role, member, clock)
                    clock += 100
                    row = an_episode(group, member)
                    store.record_episode(row)
                    if role == "solver":
                        store.record_attempt(
                            AttemptRow(
                                row.episode_id,
                                bug,
                                bool(member),
                                "",
                                (),
                                Confirmation.NOT_NEEDED,
                                (),
                                "",
                                1.0,
                            )
                        )
                    else:
                        store.record_verdict(VerdictRow(row.episode_id, not member, "", "", "[]", 1.0, 1, 0))
                        if not member:
                            store.add_bug(
                                a_bug(f"{row.episode_id}-bug", row.episode_id, tree_digest=f"tree {update}")
                            )
            store.commit_update(update, f"update-{update:05d}", update, True, "{}")
            for row in store.episodes(update=update):
                store.consume(row.episode_id, update, 1.0 if row.member else -1.0)
            seconds = {
                "injecting": 8.0,
                "solving": 15.0 + (later_s if update > updates // 2 else 0),
                "second_order": 2.0,
                "training": 4.0,
            }
            values = {f"seconds/{name}": value for name, value in seconds.items()}
            metrics.write(
                json.dumps({"update": update, "tokens": 6 * 40.0, "seconds/saving": 0.5, **values}) + "\n"
            )
    return RunFolder(folder)


def an_episode_file(folder: Path, group: str, role: str, member: int, started: float) -> None:
    turns = tuple(Turn("", "bash", "", span, 0, 1.0, 0.5) for span in ((10, 20), (30, 40)))
    Episode(
        episode_id=f"{group}-m{member}",
        role=Role(role),
        repository="toolz",
        update=1,
        group=group,
        member=member,
        seed=0,
        finish=FinishReason.SUBMITTED,
        messages=(),
        turns=turns,
        token_ids=(0,) * 40,
        loss_mask=(0,) * 40,
        logprobs=(0.0,) * 40,
        started_at=started,
        duration_s=3.5,
    ).write(folder / "episodes")


def test_figures_of_a_run_are_read_from_its_folder(tmp_path):
    recorded = read_run(a_run(tmp_path / "run"))
    assert (recorded.first, recorded.last) == (1, 4)
    assert (len(recorded.workload.injectors), len(recorded.workload.solvers)) == (4, 8)
    # Each injector group comes with two solver groups, of which one replays an older bug.
    assert (recorded.workload.bugs, recorded.workload.replays) == (1.0, 1.0)
    assert recorded.workload.solvers[0].episodes[0] == EpisodeShape(
        0.5, (Stretch(10, 10, 0.5), Stretch(10, 10, 0.5)), 1.0, 2
    )
    assert recorded.plans == ((1, 2),) * 4
    assert recorded.batch_tokens == 240
    assert (recorded.in_flight, recorded.judges, recorded.max_lag) == (1, 1, 3)
    assert 10 * recorded.server.token_s(1) + 10 * recorded.server.read_s == pytest.approx(1.0)


def test_updates_that_are_not_asked_for_are_not_read(tmp_path):
    recorded = read_run(a_run(tmp_path / "run"), 1, 2)
    assert (len(recorded.workload.injectors), len(recorded.workload.solvers), len(recorded.plans)) == (
        2,
        4,
        2,
    )


def test_a_run_with_equal_halves_is_predicted_exactly(tmp_path):
    check = check_run(a_run(tmp_path / "run"))
    predicted = {phase.phase: phase.predicted_s for phase in check.phases}
    # One sandbox for play: 2 and 4 episodes of 3.5 s, and the last verdict. The others are judged while the
    # next is played.
    assert predicted == pytest.approx(
        {"injecting": 8.0, "solving": 15.0, "second order": 2.0, "training": 4.5, "update": 29.5}
    )
    assert check.phases[-1].error == pytest.approx(0.0, abs=1e-6)


def test_a_check_reports_its_error_on_a_half_that_it_has_not_seen(tmp_path):
    check = check_run(a_run(tmp_path / "run", later_s=5.0))
    solving = next(phase for phase in check.phases if phase.phase == "solving")
    assert (solving.predicted_s, solving.measured_s) == pytest.approx((15.0, 20.0))
    assert solving.error == pytest.approx(-0.25)
    assert solving.own_error == pytest.approx(0.0, abs=1e-6)
    console = Console(file=io.StringIO(), width=80)
    show_check(check, console)
    assert "-25%" in console.file.getvalue()


def test_a_run_without_metrics_is_refused_with_the_remedy(tmp_path):
    run = a_run(tmp_path / "run")
    run.metrics.write_text("")
    with pytest.raises(RunError, match=r"metrics\.jsonl holds no finished update.*--workload paper"):
        read_run(run)


def test_a_run_without_its_episode_files_is_refused(tmp_path):
    run = a_run(tmp_path / "run")
    for path in run.episodes.iterdir():
        path.unlink()
    with pytest.raises(RunError, match="no episode of the updates 1 to 4"):
        read_run(run)


def test_a_run_of_few_updates_cannot_be_checked(tmp_path):
    with pytest.raises(RunError, match=r"3 finished update\(s\); a check needs 4"):
        check_run(a_run(tmp_path / "run", updates=3))


# -- plans

SMALL = ModelSize(1e9, 16, 2048, 512)


def a_request(**changes) -> PlanRequest:
    shapes = [
        episode(sampled=200, turns=turns, act_s=2.0, prefill=300, judge_s=5.0, open_s=1.0)
        for turns in (4, 8, 16)
    ]
    work = of_groups(*(solvers(*shapes, shape) for shape in shapes))
    return replace(
        PlanRequest(
            8, work, SMALL, Gpu(), batch_tokens=200_000, max_lag=1, slots=16, updates=5, simulations=3
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def plan():
    return make_plan(a_request())


def test_the_best_split_is_the_best_of_those_tried(plan):
    assert plan.best.trainer_gpus + plan.best.rollout_gpus == 8
    assert [one.trainer_gpus for one in plan.splits] == sorted({one.trainer_gpus for one in plan.splits})
    assert plan.best is max(plan.splits, key=lambda one: one.trained_per_hour)


def test_every_split_beside_the_best_was_tried(plan):
    tried = {one.trainer_gpus for one in plan.splits}
    assert {max(1, plan.best.trainer_gpus - 1), min(7, plan.best.trainer_gpus + 1)} <= tried


def test_fewer_hosts_than_advised_would_slow_it(plan):
    fewer = [one for one in plan.by_hosts if one.hosts < plan.enough_hosts]
    assert fewer
    assert all(one.trained_per_hour < 0.99 * plan.best.trained_per_hour for one in fewer)


def test_a_given_split_is_not_changed():
    given = make_plan(a_request(trainer_gpus=3, hosts=2))
    assert (given.best.trainer_gpus, given.best.rollout_gpus, given.best.hosts) == (3, 5, 2)
    assert len(given.splits) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_plan_is_readable_at_its_width(plan, width):
    console = Console(file=io.StringIO(), width=width)
    show_plan(plan, ("assumed: " + "word " * 40,), console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert f"{plan.best.trainer_gpus} trainer : {plan.best.rollout_gpus} rollout" in text
    assert "assumed: word" in text


def test_a_plan_is_data_too(plan):
    data = json.loads(json.dumps(plan_data(plan, ("one",))))
    assert data["best"]["trainer_gpus"] == plan.best.trainer_gpus
    assert data["simulations"] == 3
    played = [forecast.episodes_per_hour for forecast in plan.best.forecasts]
    assert data["best"]["episodes_per_hour"] == {
        "mean": pytest.approx(statistics.fmean(played)),
        "standard_error": pytest.approx(statistics.stdev(played) / math.sqrt(3)),
        "simulations": 3,
    }
    assert data["best"] in data["splits"]
    assert data["assumptions"] == ["one"]
    assert list(data["episode"]) == ["turns", "tokens", "drawn", "sandbox_s", "judge_s", "context"]
    assert len(data["splits"]) == len(plan.splits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": 0}, "--gpus 0: a cluster needs GPUs; give 2 or more"),
        ({"gpus": 1}, "--gpus 1: one GPU cannot be split"),
        ({"trainer_gpus": 9}, "--trainer-gpus 9 leaves none of 8 GPUs for rollouts. Give at most 7"),
        (
            {"trainer_gpus": 7, "server_gpus": 2},
            "--trainer-gpus 7 leaves 1 of 8 GPUs, fewer than one rollout server of 2",
        ),
        ({"model": ModelSize(70e9, 80, 8192, 1024)}, "--gpus 8: a policy of 7e[+]10 parameters needs 16"),
        (
            {"model": ModelSize(8e9, 32, 4096, 1024), "trainer_gpus": 1},
            "--trainer-gpus 1: .* need 2 GPUs of 80 GB",
        ),
        ({"batch_tokens": 0}, "--batch-tokens 0: give the tokens of an update, for instance 16800000"),
        ({"slots": 0}, "--slots 0: needs 1 or more"),
        ({"hosts": -1}, "--hosts -1"),
        ({"simulations": 1}, "--simulations 1: give 2 or more, since the uncertainty of each figure"),
    ],
)
def test_inputs_that_cannot_be_planned_are_reported_with_value_and_remedy(changes, words):
    with pytest.raises(UsageError, match=words):
        make_plan(a_request(**changes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": 0}, "--gpus 0"),
        ({"workload": "meta"}, "--workload meta: there is only 'paper'"),
        ({"workload": "paper", "run": "mine"}, "give one of the two"),
        (
            {"workload": "paper", "assume": ["turn=3"]},
            "--assume turn: there is no such assumption. Choose from: turns",
        ),
        ({"workload": "paper", "assume": ["turns"]}, "is not name=number"),
        ({"workload": "paper", "assume": ["valid=1.5"]}, "valid=1.5: needs a share from 0 to 1"),
        ({"workload": "paper", "parameters": 0.0}, "--parameters 0"),
        ({"workload": "paper", "mfu": 1.4}, "--mfu 1.4: needs a share above 0 and up to 1"),
        ({"assume": ["turns=3"]}, "give it with --workload paper"),
        ({"workload": "paper", "simulations": 1}, "--simulations 1: give 2 or more"),
    ],
)
def test_options_that_make_no_sense_are_reported(options, words):
    with pytest.raises(UsageError, match=words):
        plan_from(PlanOptions(**options), Console(file=io.StringIO()))


def test_a_run_without_its_policys_size_asks_for_it(tmp_path):
    a_run(tmp_path / "runs" / "mine")
    with pytest.raises(RunError, match="Give --parameters"):
        plan_from(PlanOptions(run="mine", runs=tmp_path / "runs"), Console(file=io.StringIO()))


def test_a_run_is_planned_with_its_own_batch_and_lag(tmp_path):
    a_run(tmp_path / "runs" / "mine")
    options = PlanOptions(run="mine", runs=tmp_path / "runs", parameters=1e6, gpus=2, updates=3)
    made, assumptions = plan_from(options, Console(file=io.StringIO()))
    assert (made.request.batch_tokens, made.request.max_lag) == (240, 3)
    assert any("24 episodes" in sentence for sentence in assumptions)


def test_the_papers_workload_follows_its_assumptions():
    work = paper_sample(PaperAssumptions(), seed=1, groups=10)
    assert work == paper_sample(PaperAssumptions(), seed=1, groups=10)
    assert all(len(group.episodes) == 8 for group in (*work.injectors, *work.solvers))
    assert max(shape.turns for group in work.solvers for shape in group.episodes) <= 128
    assert max(shape.tokens for group in work.solvers for shape in group.episodes) <= 131_072
    assumed = paper_assumptions({"drawn_tokens": 600.0})
    longer = paper_workload(assumed, [paper_sample(assumed, seed, groups=10) for seed in (1, 2)])
    assert len(longer.solvers) == 20
    assert longer.per_episode().sampled > 1.5 * work.per_episode().sampled
    assert any("samples 600" in sentence for sentence in longer.assumptions)


# -- the number of GPUs


@pytest.mark.parametrize(("parameters", "gpus"), [(2.1e6, 8), (5e8, 8), (0.6e9, 16), (8e9, 128), (32e9, 512)])
def test_the_usual_number_of_gpus_follows_the_papers_ratio_in_whole_machines(parameters, gpus):
    assert usual_gpus(parameters) == gpus


def test_without_gpus_a_run_is_planned_on_as_many_as_its_policy_needs(tmp_path, capsys):
    run = a_run(tmp_path / "runs" / "mine")
    checkpoint = run.checkpoints / "update-00004"
    checkpoint.mkdir(parents=True)
    shape = {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 6}
    (checkpoint / "config.json").write_text(json.dumps(shape))
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2_100_000], "data_offsets": [0, 0]}}).encode()
    (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    options = PlanOptions(run="mine", runs=tmp_path / "runs", updates=2, simulations=2)
    run_plan(options)
    said = "assumed 8 GPUs for a policy of 2.1M parameters; --gpus N chooses"
    assert said in capsys.readouterr().out
    made, assumptions = plan_from(options, Console(file=io.StringIO()))
    assert (made.request.gpus, assumptions[0]) == (8, said)
    run_plan(replace(options, gpus=4))
    shown = capsys.readouterr().out
    assert "4 GPUs, run mine" in shown
    assert "assumed 4" not in shown


def test_the_papers_workload_keeps_its_512_gpus():
    options = PlanOptions(
        workload="paper", batch_tokens=1e6, trainer_gpus=64, hosts=60, updates=1, simulations=2, max_lag=0
    )
    made, assumptions = plan_from(options, Console(file=io.StringIO()))
    assert made.request.gpus == 512
    assert assumptions[0] == "assumed 512 GPUs, as in the paper; --gpus N chooses"
    assert made.best.forecasts[0] != made.best.forecasts[1]


# -- what is known of a figure


def test_a_plan_repeats_for_a_seed_and_another_seed_shares_no_simulation():
    first, again, other = (make_plan(a_request(trainer_gpus=2, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first.request.seeds) & set(other.request.seeds)
    one, two = (made.best.estimate("trained_per_hour") for made in (first, other))
    assert one.mean != two.mean
    assert abs(one.mean - two.mean) < 4 * math.hypot(one.error, two.error)


def rated(forecast: Forecast, trainer_gpus: int, *rates: float) -> Candidate:
    """A split of 8 GPUs with these trained episodes per hour, one a simulation."""
    forecasts = tuple(replace(forecast, trained_per_hour=rate) for rate in rates)
    return Candidate(trainer_gpus, 8 - trainer_gpus, 3, forecasts)


def shown_plan(plan: Plan, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_plan(plan, (), console)
    return console.file.getvalue()


def test_splits_within_the_noise_of_the_best_are_named(plan):
    forecast = plan.best.forecasts[0]
    best = rated(forecast, 2, 20_000, 19_000, 21_000)
    noisy = rated(forecast, 1, 21_000, 19_500, 19_000)
    slower = rated(forecast, 3, 10_000, 9_000, 11_000)
    made = replace(plan, best=best, splits=(noisy, best, slower), by_hosts=(best,), enough_hosts=3)
    assert made.even == (noisy, best)
    assert "splits 1 : 7 to 2 : 6 cannot be told apart" in shown_plan(made)
    assert "20,000 ± 600 trained" in shown_plan(made)
    alone = replace(made, splits=(best, slower))
    assert "every other split that was tried is slower" in shown_plan(alone)


def test_a_split_that_is_worse_in_every_simulation_by_little_is_not_told_apart(plan):
    """Measured: the same seeds give nearly the same chance events, and a jump now and then."""
    forecast = plan.best.forecasts[0]
    best = rated(forecast, 7, 14_271, 18_601, 13_615, 15_662, 16_900)
    other = rated(forecast, 2, 13_748, 17_955, 13_066, 15_118, 16_585)
    assert not other.is_told_apart(best)


def test_more_comparisons_ask_for_a_larger_difference(plan):
    forecast = plan.best.forecasts[0]
    best, other = rated(forecast, 1, 100, 102, 104, 106), rated(forecast, 2, 94, 96, 98, 100)
    assert other.is_told_apart(best)  # t = 3.29 with 6 degrees of freedom; its quantiles: 2.45, and 3.86
    assert not other.is_told_apart(best, comparisons=6)


def test_a_split_has_one_rate_wherever_it_is_printed(plan):
    text = shown_plan(plan)
    figure = figure_text(plan.best.estimate("trained_per_hour"))
    head = re.search(r"^ *episodes an hour +(.+?) trained", text, re.MULTILINE)
    row = re.search(
        rf"^ +{plan.best.trainer_gpus} : {plan.best.rollout_gpus}  best +([\d,]+(?: ± [\d,]+)?)",
        text,
        re.MULTILINE,
    )
    assert head is not None
    assert row is not None
    assert head[1] == row[1] == figure
    hosts = text[text.index("with fewer sandbox hosts") :]
    assert f"{plan.best.hosts}          as above" in hosts


@pytest.mark.parametrize(
    ("mean", "error", "decimals", "text"),
    [
        (19_607.3, 412.0, 0, "19,600 ± 400"),
        (20_207.0, 1_234.0, 0, "20,200 ± 1,200"),
        (653.2, 0.2, 0, "653 ± 1"),  # no smaller error than the last digit that is shown
        (4.9321, 0.0812, 2, "4.93 ± 0.08"),
        (97.04, 9.7, 1, "97 ± 10"),
        (0.04, 0.3, 1, "0.0 ± 0.3"),
        (100.0, 0.0, 1, "100"),
        (12.345, 0.0, 1, "12.3"),
    ],
)
def test_a_figure_shows_no_digit_that_its_error_leaves_open(mean, error, decimals, text):
    assert figure_text(Estimate(mean, error, 5), decimals) == text


# -- progress


def test_a_search_says_how_much_of_it_is_done():
    for request in (a_request(), a_request(gpus=64, updates=1), a_request(trainer_gpus=2, hosts=3)):
        reports: list[tuple[int, int]] = []
        made = make_plan(request, lambda done, most, seen=reports: seen.append((done, most)))
        tried = len(made.splits) + len(made.by_hosts) - 1  # the best is in both
        done = [count for count, _ in reports]
        assert done[0] == 0
        assert done == sorted(done)
        assert done[-1] == 3 * tried <= reports[-1][1]
        assert all(before[1] >= after[1] >= after[0] for before, after in pairwise(reports))


def test_reading_a_run_says_how_many_episodes_are_read(tmp_path):
    reports: list[tuple[int, int]] = []
    read_run(a_run(tmp_path / "run"), report=lambda done, total: reports.append((done, total)))
    assert reports == [(0, 0), *((done, 24) for done in range(25))]


def test_a_plan_without_a_terminal_prints_plain_lines_of_progress(tmp_path):
    a_run(tmp_path / "runs" / "mine")
    options = PlanOptions(run="mine", runs=tmp_path / "runs", parameters=1e6, gpus=2, updates=2)
    console = Console(file=io.StringIO(), width=60)
    plan_from(options, console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "reading episodes"
    assert any(re.fullmatch(r"simulating: 0 of at most \d+", line) for line in lines)


def test_other_processes_give_the_same_forecasts():
    jobs = [(mixed_cluster(), mixed_workload(), replace(MIXED_RULES, seed=seed)) for seed in range(4)]
    with Simulators(long_s=0.0, cores=2) as simulators:
        assert list(simulators(jobs)) == list(in_turn(jobs))
