import threading
from collections import Counter

import pytest

from selfplay.engines.routing import Router, choose, rendezvous
from selfplay.errors import EngineError

NAMES = ["a", "b", "c"]


def test_a_server_that_goes_moves_only_its_own_conversations() -> None:
    before = {key: rendezvous(key, NAMES)[0] for key in map(str, range(300))}
    after = {key: rendezvous(key, ["a", "c"])[0] for key in before}
    assert all(after[key] == home for key, home in before.items() if home != "b")
    assert min(Counter(before.values()).values()) > 60


def test_members_of_a_group_stay_together_until_their_server_is_loaded_above_the_mean() -> None:
    first = choose("injector/g1", dict.fromkeys(NAMES, 2.0))
    assert choose("injector/g1", {name: 2.2 if name == first else 2.0 for name in NAMES}) == first
    assert choose("injector/g1", {name: 8.0 if name == first else 2.0 for name in NAMES}) != first


def test_a_conversation_stays_where_its_cache_is_while_loads_change() -> None:
    router: Router[str] = Router(bound=8)
    for name in NAMES:
        router.add(name, name)
    with router.slot("solver/g/1", 1) as home:
        pass
    router.report(home, 100)
    with router.slot("solver/g/1", 1) as again, router.slot("solver/h/1", 1) as other:
        assert again == home
        assert other != home


def test_a_full_server_lets_a_request_wait_for_a_slot() -> None:
    router: Router[str] = Router(bound=1)
    router.add("a", "a")
    entered = threading.Event()

    def second() -> None:
        with router.slot("y", 10):
            entered.set()

    with router.slot("x", 1):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(5)
    thread.join()


def test_waiting_for_a_slot_has_a_deadline() -> None:
    router: Router[str] = Router(bound=1)
    router.add("a", "a")
    with (
        router.slot("x", 1),
        pytest.raises(EngineError, match=r"no server had a free slot within 0\.05 s"),
        router.slot("y", 0.05),
    ):
        pass


def test_threads_that_wait_for_a_server_get_an_error_when_none_will_start() -> None:
    router: Router[str] = Router(bound=1)
    threading.Timer(0.05, router.fail, [EngineError("it ran out of memory")]).start()
    with pytest.raises(EngineError, match="out of memory"), router.slot("x", 10):
        pass


def test_only_the_first_thread_removes_a_lost_server() -> None:
    router: Router[str] = Router(bound=1)
    router.add("a", "first")
    assert router.remove("a", "first")
    router.add("a", "second")
    assert not router.remove("a", "first")
    assert router.servers() == {"a": "second"}
