"""What tests rest on outside of their own files: data that they open, helpers that only they use.

A value, made when an environment is admitted (`repositories.material`). The path policy knows tests by their
names; this knows the rest by what a recorded run did and by the imports of the tree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from selfplay.source.module_imports import related


@dataclass(frozen=True)
class TestMaterial:
    """Files that decide what tests say.

    files    neither a bug nor a repair may change them: data files that tests open, modules of helpers
    covered  Python files of code that tests import
    imports  Python files of code -> those that they import
    """

    __test__ = False  # pytest: a value, not a test class

    files: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()
    imports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def unrelated(self, changed: Collection[str]) -> tuple[str, ...]:
        """The code files that tests import and that have nothing to do with a bug in the files `changed`.

        They neither import these files nor are imported by them, at any distance. No repair needs to change
        them, but a helper of the tests may be among them. None if the imports of a changed file are unknown.
        """
        if not all(path in self.imports for path in changed):
            return ()
        near = related(self.imports, set(changed))
        return tuple(path for path in self.covered if path not in near)


NO_MATERIAL = TestMaterial()
