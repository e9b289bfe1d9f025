"""Writes a run folder with many updates, evaluations and hostile texts, for tests of views and exports.

python tests/helpers/report_run.py FOLDER [SEED]
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.config import build_config
from selfplay.curriculum.rows import AttemptRow, EnvironmentRow, EpisodeRow, GroupRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.evaluation.folder import AttemptResult
from selfplay.metrics import JsonlSink
from selfplay.verdicts.confirmation import Confirmation
from store_rows import INJECT, WEAKEN, a_bug

# What a policy may write to harm a page that shows it.
HOSTILE = (
    "</pre></div></details><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    '<style>body{display:none}</style>\x1b[2J\x00\u202eevil\u2066 & "quotes" \' ]]> {{ 7*7 }} '
    "<a href=javascript:alert(1)>x</a><iframe src=http://127.0.0.1:9/></iframe><!--"
)
HUGE = "A" * 30_000
REPOSITORIES = ("toolz-1.0.0", "iniconfig-2.0.0", f"<b>{HOSTILE}</b>")
STRATEGIES = ("direct", "removal", "history")
CHECKS = ("", "", "", "parser", "bug_breaks_tests", "inverse_mutation", "weakening_hides")
FUNCTIONS = ("dicttoolz.merge", "itertoolz.groupby", "functoolz.compose", "IniConfig.parse", HOSTILE)
EVALUATED = {"human": 9, "own": 15}


def report_run(folder: Path, updates: int = 6, seed: int = 0, group_size: int = 4) -> Path:
    """Write the run and return its folder."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        build_config({"seed": seed, "train": {"updates": max(1, updates)}}).resolved(), encoding="utf-8"
    )
    (folder / "repositories.txt").write_text("pypi:toolz==1.0.0\npypi:iniconfig==2.0.0\n")
    sink = JsonlSink(folder / "metrics.jsonl")
    with Store.open(folder / "selfplay.db", clock=lambda: 1_700_000_000.0) as store:
        for name in REPOSITORIES:
            store.record_environment(EnvironmentRow(name, "0" * 40, "env", "BSD", 120, (), "ready"))
        known: list[str] = []
        for update in range(1, updates + 1):
            store.begin_update(update)
            with store.transaction():
                _inject(store, folder, update, draw, known, group_size)
                _solve(store, folder, update, draw, known, group_size)
                row = _metrics(update, updates, draw, len(known))
                store.commit_update(update, f"update-{update:05d}", update, True, json.dumps(row))
            sink.write(row)
    for update in sorted({0, updates // 2, updates}) if updates else ():
        _evaluate(folder, update, updates, draw)
    sink.close()
    return folder


def _inject(
    store: Store, folder: Path, update: int, draw: random.Random, known: list[str], size: int
) -> None:
    repository, strategy = draw.choice(REPOSITORIES), draw.choice(STRATEGIES)
    group = GroupRow(f"u{update:04d}-inj0", update, "injector", repository, strategy, "", "", size)
    store.add_group(group)
    for member in range(size):
        check = draw.choice(CHECKS)
        episode = _episode(group, member, draw)
        store.record_episode(_row(episode, 0.4 if not check else -1.0))
        store.consume(episode.episode_id, update, draw.uniform(-1, 1))
        episode.write(folder / "episodes")
        checks = [{"name": check or "readable", "passed": not check, "reason": HOSTILE}]
        recorded = json.dumps({"checks": checks, "buggy_digest": f"tree {episode.episode_id}"})
        store.record_verdict(VerdictRow(episode.episode_id, not check, check, HOSTILE, recorded, 3.0, 6, 2))
        if not check:
            target = json.dumps({"path": "m.py", "name": draw.choice(FUNCTIONS)})
            bug = a_bug(
                f"{episode.episode_id}-bug",
                episode.episode_id,
                repository=repository,
                strategy=strategy,
                target=target,
                failure=HOSTILE,
                created_update=update,
            )
            store.add_bug(replace(bug, fail_to_pass=tuple(f"t.py::t{n}" for n in range(update % 4 + 1))))
            known.append(bug.bug_id)


def _solve(store: Store, folder: Path, update: int, draw: random.Random, known: list[str], size: int) -> None:
    for number, bug_id in enumerate(known[-3:]):
        bug = store.bug(bug_id)
        group = GroupRow(
            f"u{update:04d}-sol{number}", update, "solver", bug.repository, bug.strategy, "", bug_id, size
        )
        store.add_group(group)
        chance = draw.random()
        passes = 0
        for member in range(size):
            passed = draw.random() < chance
            passes += passed
            episode = _episode(group, member, draw)
            store.record_episode(_row(episode, 1.0 if passed else -1.0))
            store.consume(episode.episode_id, update, draw.uniform(-1, 1))
            episode.write(folder / "episodes")
            found = draw.choice([Confirmation.CONFIRMED] * 9 + [Confirmation.FORGED])
            store.record_attempt(
                AttemptRow(episode.episode_id, bug_id, passed, HOSTILE, (), found, (), INJECT, 2.0)
            )
            if not passed and draw.random() < 0.15 and bug.order == 1:
                child = a_bug(
                    f"{episode.episode_id}-bug2", bug.injector_episode_id, order=2, attempt_patch=INJECT
                )
                store.add_bug(
                    replace(
                        child,
                        repository=bug.repository,
                        parent_bug_id=bug_id,
                        parent_episode_id=episode.episode_id,
                        created_update=update,
                        target=bug.target,
                    )
                )
        store.set_solve_rate(bug_id, passes / size, size, passes)


def _row(episode: Episode, reward: float) -> EpisodeRow:
    return EpisodeRow(
        episode_id=episode.episode_id,
        group_id=episode.group,
        member=episode.member,
        update=episode.update,
        role=episode.role,
        repository=episode.repository,
        strategy=episode.strategy,
        bug_id=episode.bug_id,
        finish=episode.finish,
        path=f"episodes/{episode.episode_id}.json.gz",
        turns=len(episode.turns),
        action_tokens=episode.action_tokens,
        total_tokens=len(episode.token_ids),
        weight_version_min=episode.update - 1,
        started_at=1_700_000_000.0 + episode.update,
        duration_s=12.5,
        reward=reward,
    )


def _episode(group: GroupRow, member: int, draw: random.Random) -> Episode:
    """Tokens 0 to 4 are the prompt. Each turn has four action tokens and three of the observation."""
    count = draw.randint(1, 6)
    turns = tuple(
        Turn(
            f"Look: {HOSTILE}\n<tool: bash>\ncat m.py\n</tool>"
            if number < count - 1
            else "<tool: submit>\n</tool>",
            "bash" if number < count - 1 else "submit",
            f"{HOSTILE}\n{HUGE if number == 0 and member == 0 else 'x = 2'}" if number < count - 1 else "",
            (5 + 7 * number, 9 + 7 * number),
            0 if number < count - 1 else None,
            1.5,
            0.2,
        )
        for number in range(count)
    )
    length = turns[-1].tokens[1]
    mask = [0] * length
    for turn in turns:
        mask[slice(*turn.tokens)] = [1] * 4
    ends = draw.choice([FinishReason.SUBMITTED] * 3 + [FinishReason.MAX_TURNS, FinishReason.STUCK])
    messages = [{"role": "system", "content": "You work."}, {"role": "user", "content": f"Task {HOSTILE}"}]
    for turn in turns:
        messages.append({"role": "assistant", "content": turn.text})
        messages += [{"role": "user", "content": turn.observation}] if turn.observation else []
    return Episode(
        episode_id=f"{group.group_id}-m{member}",
        role=Role(group.role),
        repository=group.repository,
        update=group.update,
        group=group.group_id,
        member=member,
        seed=7,
        finish=ends,
        messages=tuple(messages),
        turns=turns,
        token_ids=tuple(range(length)),
        loss_mask=tuple(mask),
        logprobs=tuple(-0.5 * bit for bit in mask),
        weight_versions=((0, group.update - 1),),
        strategy=group.strategy,
        bug_id=group.bug_id,
        submission={"patch": INJECT}
        if group.role == "solver"
        else {"bug_inject.diff": INJECT, "test_weaken.diff": WEAKEN},
        started_at=1_700_000_000.0,
        duration_s=12.5,
    )


def _metrics(update: int, updates: int, draw: random.Random, bugs: int) -> dict[str, object]:
    done = update / updates
    row: dict[str, object] = {"update": update, "carried_gradient": True, "grad_norm": draw.uniform(0.1, 0.4)}
    for role, tokens in (("injector", 5200), ("solver", 7400)):
        row |= {
            f"{role}/reward": done * 0.5 - draw.random() * 0.6,
            f"{role}/entropy": 1.4 - done * 0.8,
            f"{role}/kl": done * 0.02,
            f"{role}/rollout_logprob_diff": 0.004 + draw.random() * 0.004,
            f"{role}/clip_share": draw.random() * 0.02,
            f"{role}/zero_variance": draw.random(),
            f"{role}/sampled_tokens": tokens,
            f"{role}/failed_calls": 0.3 - 0.2 * done,
        }
    return row | {
        "injector/valid": 0.3 + 0.4 * done,
        "injector/duplicate": 0.4 * done,
        "injector/void": 0,
        "idle/trainer": 0.4,
        "idle/engine": 0.2 + draw.random() * 0.2,
        "episodes_per_hour": 300 + draw.random() * 50,
        "lag/max": update % 3,
        "lag/mean": (update % 3) / 2,
        "groups/stale": 0,
        "curriculum/bugs": bugs,
        "seconds/playing": 50 + draw.random() * 10,
        "seconds/training": 20.0,
        "seconds/saving": 2.0,
    }


def _evaluate(folder: Path, update: int, updates: int, draw: random.Random) -> None:
    place = folder / "evaluations" / f"u{update:04d}"
    place.mkdir(parents=True)
    tasks, lines = {}, []
    for name, count in EVALUATED.items():
        for number in range(count):
            instance = f"{name}-{number}"
            tasks[instance] = {"digest": instance, "set": name, "part": "", "repository": "toolz"}
            chance = 0.1 + 0.5 * (number % 3) / 2 + 0.3 * update / updates
            for attempt in range(4):
                passed = draw.random() < chance
                result = AttemptResult(
                    instance, "toolz", attempt, passed, "", "submitted", 3, 40, patch=INJECT
                )
                lines.append(result.to_line())
    identity = {"policy": {"update": update}, "settings": {}, "tasks": tasks}
    (place / "evaluation.json").write_text(json.dumps(identity))
    (place / "results.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    report_run(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
