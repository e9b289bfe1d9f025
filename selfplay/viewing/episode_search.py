"""Finds a recorded episode by its id, and loads all that was decided about it.

Reads the episode's file, its rows in the run's database, and for an episode of an evaluation that
evaluation's results and tasks.
"""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path

from selfplay.agent.episode import Episode, Role
from selfplay.curriculum.store import Store
from selfplay.errors import PatchError, RunError, StoreError, UsageError
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.tasks import find_tasks, frozen_sets, read_tasks
from selfplay.viewing.duplicates import duplicated_bug
from selfplay.viewing.episode_record import KnownBug, Member, RecordedEpisode, graded, judged

SUFFIX = ".json.gz"
# Where episodes are below the folder of a run, of an evaluation, or of several runs.
PLACES = ("episodes", "evaluations/*/episodes", "*/episodes", "*/evaluations/*/episodes")


# ---- finding


def find_episode(folder: Path, wanted: str) -> RecordedEpisode:
    """Find an episode by its file, its id or the start of its id.

    folder: the folder of one run or evaluation, or one that holds several runs.
    Raises RunError if no episode or several match, or if the file cannot be read.
    """
    given = Path(wanted)
    if wanted.endswith(SUFFIX) and given.is_file():
        return load_episode(given)
    found = sorted({path for place in PLACES for path in folder.glob(f"{place}/*{SUFFIX}")})
    exact = [path for path in found if _id(path) == wanted]
    fitting = exact or [path for path in found if _id(path).startswith(wanted)]
    if len({_id(path) for path in fitting}) == 1:
        exact = fitting
    if len(fitting) == 1:
        return load_episode(fitting[0])
    if not found:
        raise RunError(f"there are no episodes in {folder}. Play some: `selfplay train --repos list.txt`.")
    if not fitting:
        some = ", ".join(_id(path) for path in found[-6:])
        raise RunError(
            f"no episode id in {folder} begins with {wanted!r} (there are {len(found)}, for instance {some})."
        )
    if exact:
        names = [_run_name(path, folder) for path in exact]
        what = "evaluations" if all("/" in name for name in names) else "runs"
        raise RunError(
            f"{len(exact)} {what} have an episode {_id(exact[0])!r}: {', '.join(names[:6])}. "
            f"Choose one, for instance with --run {shlex.quote(names[0])}"
        )
    some = ", ".join(_id(path) for path in fitting[:6]) + (", …" if len(fitting) > 6 else "")
    raise RunError(f"the ids of {len(fitting)} episodes begin with {wanted!r}: {some}. Give more of the id.")


def _id(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _run_name(path: Path, folder: Path) -> str:
    """What `--run` takes to find this episode: `quick`, or `quick/evaluations/u0008`."""
    name = path.parent.parent.relative_to(folder).as_posix()
    is_one_run = name == "." or name.startswith("evaluations/")
    return (Path(folder.name) / name).as_posix() if is_one_run else name


# ---- loading


def load_episode(path: Path) -> RecordedEpisode:
    """The episode of a file with its rows. Raises RunError if the file cannot be read."""
    try:
        episode = Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read as an episode: {error}. Resuming its run plays the episode again."
        ) from error
    database = path.parent.parent / "selfplay.db"
    if not database.is_file():
        return _of_evaluation(episode, path, Folder(path.parent.parent))
    try:
        with closing(Store.open(database, writer=False)) as store:
            return _of_training(episode, path, store)
    except StoreError:
        return RecordedEpisode(episode, path)


def _of_training(episode: Episode, path: Path, store: Store) -> RecordedEpisode:
    name = episode.episode_id
    verdict = store.verdict(name)
    made = store.bugs_of_episode(name)
    repeats = duplicated_bug(store, verdict)
    if episode.role is Role.SOLVER:
        bug = store.find_bug(episode.bug_id)
    else:
        own = (bug for bug in made if bug.order == 1)
        bug = store.find_bug(repeats) if repeats else next(own, None)
    return RecordedEpisode(
        episode,
        path,
        store.episode(name),
        verdict,
        store.attempt(name),
        repeats,
        bug=KnownBug.of_row(bug) if bug else None,
        members=_group(store, episode),
        grown=next((bug.bug_id for bug in made if bug.parent_episode_id == name), ""),
    )


def _group(store: Store, episode: Episode) -> tuple[Member, ...]:
    attempts = {row.episode_id: row for row in store.attempts(group_id=episode.group)}
    members = []
    for row in store.episodes(group_id=episode.group):
        if episode.role is Role.SOLVER:
            attempt = attempts.get(row.episode_id)
            result = graded(attempt.passed) if attempt else graded(None)
        else:
            verdict = store.verdict(row.episode_id)
            result = judged(verdict, duplicated_bug(store, verdict))
        shown = row.episode_id == episode.episode_id
        members.append(
            Member(str(row.member), row.finish, result, row.reward, row.advantage, row.masked, shown)
        )
    return tuple(members)


def _of_evaluation(episode: Episode, path: Path, folder: Folder) -> RecordedEpisode:
    """A greedy attempt is of a group of its own, and stands beside the sampled ones here."""
    mode = "sampled" if episode.group == episode.bug_id else "greedy"
    key = (episode.bug_id, mode, episode.member)
    results = [result for result in folder.results() if result.instance_id == episode.bug_id]
    results.sort(key=lambda result: (result.mode == "greedy", result.attempt))
    return RecordedEpisode(
        episode,
        path,
        result=next((result for result in results if result.key == key), None),
        bug=_bug_of_evaluation(folder, episode.bug_id),
        members=tuple(
            Member(
                "greedy" if result.mode == "greedy" else str(result.attempt),
                result.finish,
                graded(result.passed),
                is_shown=result.key == key,
            )
            for result in results
        ),
    )


def _bug_of_evaluation(folder: Folder, instance_id: str) -> KnownBug | None:
    """The bug of a task, from the run's copy of its tasks or from the frozen sets.

    None if neither has the task with the digest that the evaluation recorded, so no other bug is shown.
    """
    copy = folder.path.parent / "tasks.jsonl"
    try:
        identity = folder.identity()
        entry = identity.tasks.get(instance_id) if identity else None
        if entry is None:
            return None
        tasks = read_tasks(copy) if copy.is_file() else []
        tasks += find_tasks([entry.set]) if entry.set in frozen_sets() else []
        same = (task for task in tasks if task.instance_id == instance_id and task.digest == entry.digest)
        return next((KnownBug.of_task(task) for task in same), None)
    except (RunError, UsageError, PatchError):
        return None
