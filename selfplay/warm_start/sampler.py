"""Random choice of what an episode is about: a function of the corpus, a bug in it, a test that calls it.

Writes no text of an episode. Invariant: one random generator makes every choice, so its seed determines them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from selfplay.teacher.functions import Function
from selfplay.teacher.mutations import Mutation, choose_mutation, plainest_mutation
from selfplay.warm_start.call_sites import CallSite, invent_call_site
from selfplay.warm_start.packages import Package
from selfplay.warm_start.renaming import NewNames, RenamedPackage

PLAIN_INJECTED = (
    0.8  # share of plainest mutations among the bugs of injectors, as the injector is to make them
)
PLAIN_SOLVED = 0.4  # share of plainest mutations among the bugs that solvers meet
REAL_CALLS = 0.9  # share of call sites taken from real tests, where there are any
FUNCTIONS_THAT_COUNT = 150  # a package with more functions is sampled no more often


class SampledFunction(NamedTuple):
    """A function and its mutations."""

    package: Package
    function: Function
    mutations: Sequence[Mutation]


class FunctionSampler:
    """Samples functions, mutations and call sites from packages.

    new_names: share of the samples whose package gets names that are made up.
    """

    def __init__(self, packages: Sequence[Package], generator: random.Random, new_names: float = 0.0) -> None:
        self.packages = [package for package in packages if package.functions]
        self.random, self.new_names = generator, new_names
        self._weights = [
            min(len(package.functions), FUNCTIONS_THAT_COUNT) * package.share for package in self.packages
        ]

    def sample(self) -> SampledFunction:
        package = self.random.choices(self.packages, self._weights)[0]
        function, mutations = self.random.choice(package.functions)
        if not self.new_names or self.random.random() >= self.new_names:
            return SampledFunction(package, function, mutations)
        others = self.random.choice(self.packages)
        names = NewNames(package.own_words, others.own_words, self.random.getrandbits(32))
        renamed = RenamedPackage.of(package, names)
        return SampledFunction(renamed, renamed.function(function), [renamed.mutation(m) for m in mutations])

    def choose(self, mutations: Sequence[Mutation], plain_share: float = PLAIN_INJECTED) -> Mutation:
        """A plainest mutation in `plain_share` of the calls, else any."""
        choose = plainest_mutation if self.random.random() < plain_share else choose_mutation
        return choose(mutations, self.random)

    def call_site(self, package: Package, function: Function) -> CallSite:
        """A test line that calls the function, or an invented one."""
        calls = package.tested_at(function.short_name)
        if calls and self.random.random() < REAL_CALLS:
            return package.call_site(*self.random.choice(calls))
        return invent_call_site(function, self.random)

    def other_assertion(self, package: Package, site: CallSite) -> CallSite:
        """Another assertion of the same test file; `site` if there is none."""
        lines = [line for line in package.assertions_in(site.path) if line != site.line]
        return package.call_site(site.path, self.random.choice(lines)) if lines else site
