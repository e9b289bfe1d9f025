"""Reads the licence of a file tree from its metadata or its licence file.

For people: nothing is decided by it.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Sequence
from email.parser import HeaderParser
from typing import Any

from selfplay.source.trees import Tree

# Licence -> pattern of a phrase in its text, in lower case with single spaces. The first match wins.
LICENCE_PHRASES = (
    ("Apache-2.0", r"apache license,?\s+version 2\.0|licensed under the apache license"),
    ("MPL-2.0", r"mozilla public license,?\s+(version|v\.?)\s*2\.0"),
    ("AGPL-3.0", r"gnu affero general public license"),
    ("LGPL-3.0", r"gnu lesser general public license\s+version 3"),
    ("LGPL-2.1", r"gnu lesser general public license\s+version 2\.1|gnu lesser general public"),
    ("GPL-3.0", r"gnu general public license\s+version 3"),
    ("GPL-2.0", r"gnu general public license\s+version 2"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*(neither the names?|names? of)"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("PSF-2.0", r"python software foundation license"),
    ("ISC", r"permission to use, copy, modify, and/or distribute"),
    ("MIT", r"permission is hereby granted, free of charge"),
    ("Unlicense", r"this is free and unencumbered software"),
    (
        "0BSD",
        r"permission to use, copy, modify, and/or distribute this software for any purpose "
        r"with or without fee is hereby granted\.\s",
    ),
)


def licence_of(tree: Tree) -> str:
    """The licence as the metadata states it, else by known phrases of the licence file, else "unknown"."""
    return _from_core_metadata(tree) or _from_pyproject(tree) or _from_licence_file(tree) or "unknown"


def _from_core_metadata(tree: Tree) -> str:
    for path in ("PKG-INFO", *sorted(p for p in tree if p.endswith(".egg-info/PKG-INFO"))):
        if path in tree:
            headers = HeaderParser().parsestr(tree.text(path))
            stated = _licence_from(
                headers.get("License-Expression"), headers.get("License"), headers.get_all("Classifier") or []
            )
            if stated:
                return stated
    return ""


def _from_pyproject(tree: Tree) -> str:
    if "pyproject.toml" not in tree:
        return ""
    project: Any = {}
    with contextlib.suppress(tomllib.TOMLDecodeError):
        project = tomllib.loads(tree.text("pyproject.toml")).get("project", {})
    if not isinstance(project, dict):
        return ""
    licence = project.get("license")
    text = licence.get("text") if isinstance(licence, dict) else licence
    classifiers = project.get("classifiers")
    return _licence_from(None, text, classifiers if isinstance(classifiers, list) else [])


def _from_licence_file(tree: Tree) -> str:
    for path in sorted(tree):
        if re.fullmatch(r"(licen[cs]e|copying)([-.]\w+)?(\.(txt|md|rst))?", path.lower()):
            text = " ".join(tree.text(path)[:20_000].lower().split())
            for name, phrase in LICENCE_PHRASES:
                if re.search(phrase, text):
                    return name
    return ""


def _licence_from(expression: Any, text: Any, classifiers: Sequence[Any]) -> str:
    """The licence that these fields of a package's metadata state, "" if they state none."""
    for stated in (expression, text):
        line = stated.strip() if isinstance(stated, str) else ""
        if line and "\n" not in line and len(line) < 80 and line.upper() != "UNKNOWN":
            return line
    named = [
        str(line).rsplit("::", 1)[1].strip() for line in classifiers if str(line).startswith("License ::")
    ]
    return " AND ".join(name for name in named if name != "OSI Approved")
