import pytest

from selfplay.curriculum.lineage import lineage, root
from selfplay.curriculum.store import Store
from selfplay.errors import StoreError
from store_rows import a_bug, a_group, an_episode, with_bug


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "selfplay.db") as opened:
        with_bug(opened)
        group = a_group("s", "solver", "bug")
        opened.add_group(group)
        opened.record_episode(an_episode(group))
        opened.add_bug(a_bug("child", order=2, parent_bug_id="bug", parent_episode_id="s-m0"))
        opened.add_bug(a_bug("stranger"))
        yield opened


def test_a_lineage_holds_only_ancestors_and_descendants(store):
    assert set(lineage(store, "bug")) == set(lineage(store, "child")) == {"bug", "child"}
    assert set(lineage(store, "stranger")) == {"stranger"}


def test_an_edge_names_the_failed_attempt(store):
    graph = lineage(store, "child")
    assert graph.edges["bug", "child"]["attempt"] == "s-m0"
    assert graph.nodes["child"]["bug"].order == 2
    assert root(graph) == "bug"


def test_an_unknown_bug_is_an_error(store):
    with pytest.raises(StoreError, match="nowhere"):
        lineage(store, "nowhere")
