"""Whether a requirement's environment marker holds in the Python that the repository's tests run with."""

from __future__ import annotations

from packaging.requirements import Requirement


def applies(requirement: Requirement, python: str | None, extra: str = "") -> bool:
    """Whether it is needed. python: the version that the line asks for, None for the one that runs selfplay.

    extra: an extra of the project that is installed too.
    """
    if requirement.marker is None:
        return True
    values = {"extra": extra}
    if python:
        values |= {"python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker.evaluate(values)
