"""Git diffs as values: reads them strictly, writes them, reverses them. Runs nothing and touches no tree.

Hunks are in `hunks`, file names and their prefixes in `diff_names`. Applying a diff is the job of `apply`.
Which paths may change is the job of `path_policy`.

The text of a diff may stand for any bytes: a byte that is not UTF-8 is a lone surrogate in it, as Python's
`surrogateescape` has it. `diff_text` and `diff_bytes` convert.

Invariant: the parts of a Patch agree with each other, and each path is safe and named by one section only.
The author of a diff may be hostile, so a line that git would guess at, repair or skip is an error here. What
git writes under its own settings is read, and so is a diff whose end was cut where only blanks can have been.
PatchError messages become evidence in verdicts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from selfplay.errors import PatchError
from selfplay.source.diff_names import Names, label, read_names, unquoted
from selfplay.source.hunks import ADVICE, NO_NEWLINE, Hunk
from selfplay.source.trees import folders_above, is_safe_path, is_too_long

PREFIX_ADVICE = "Write it with `git diff --src-prefix=a/ --dst-prefix=b/`."
MAX_FILES = 500
MAX_FOLDERS = 1000  # that hold the files: git stores an object for each when a workspace is made
MAX_PATH_BYTES = 1000
# Blank context lines that may be missing at the end of a section: more than git is ever asked for.
MAX_CUT_LINES = 100
# git's mode of a plain file -> is it executable?
MODES = {"100644": False, "100755": True}
SPECIAL_MODES = {"120000": "a symbolic link", "160000": "a submodule"}
EXTENDED_HEADER = re.compile(
    r"(new file mode|deleted file mode|rename from|rename to|similarity index|dissimilarity index|index) (.+)"
)
HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@(?: .*)?", re.DOTALL | re.ASCII)
# git, like its own reader, takes other words for "No newline at end of file": some tools translate them.
NO_NEWLINE_MARKER = re.compile(r"\\ .{10,80}")
SECTION = "diff --git "

Kind = Literal["add", "delete", "modify", "rename"]


# ---- values


@dataclass(frozen=True)
class FilePatch:
    """What a diff claims about one file.

    path: the new path, or the old one if the file is deleted. executable: of an added or deleted file only.
    """

    path: str
    old_path: str | None
    new_path: str | None
    kind: Kind
    executable: bool = False
    hunks: tuple[Hunk, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for path in (self.old_path, self.new_path) if path is not None))

    def text(self) -> str:
        """This section as git writes it.

        Never quotes a name: `path_problem` refuses every path that would need quotes.
        """
        old, new = self.old_path, self.new_path
        mode = "100755" if self.executable else "100644"
        lines = [f"{SECTION}a/{old or new} b/{new or old}"]
        if self.kind == "add":
            lines.append(f"new file mode {mode}")
        elif self.kind == "delete":
            lines.append(f"deleted file mode {mode}")
        elif self.kind == "rename":
            lines += [f"rename from {old}", f"rename to {new}"]
        if self.hunks:
            lines.append(f"--- {label('a/', None if self.kind == 'add' else old)}")
            lines.append(f"+++ {label('b/', None if self.kind == 'delete' else new)}")
        return "".join(f"{line}\n" for line in lines) + "".join(hunk.text() for hunk in self.hunks)


@dataclass(frozen=True)
class Patch:
    """A diff. Every path is safe and named by one section only."""

    files: tuple[FilePatch, ...] = ()

    @cached_property
    def changed_paths(self) -> tuple[str, ...]:
        """Every path that the diff adds, deletes or modifies, sorted. A rename changes two paths."""
        return tuple(sorted({path for file in self.files for path in file.paths}))

    @property
    def is_empty(self) -> bool:
        return not self.files

    def text(self) -> str:
        return "".join(file.text() for file in self.files)


# ---- bytes


def diff_text(data: bytes) -> str:
    """The text of a diff, which keeps every byte."""
    return data.decode("utf-8", "surrogateescape")


def diff_bytes(text: str) -> bytes:
    """The bytes that the text of a diff stands for. Raises PatchError if it stands for none."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise PatchError("the diff holds half a character, which stands for no byte") from error


def shown_diff(text: str) -> str:
    """The text for readers, valid Unicode: a replacement character for each byte that is not UTF-8."""
    return diff_bytes(text).decode("utf-8", "replace")


# ---- reading


def parse_patch(text: str, max_bytes: int) -> Patch:
    """Read a git diff of at most `max_bytes`. Blank text is a patch without files.

    Raises PatchError, which names the fault, the remedy and, inside a section, the line.
    """
    size = len(diff_bytes(text))
    if size > max_bytes:
        raise PatchError(f"the diff has {size} bytes; at most {max_bytes} are allowed. Change less.")
    if "\0" in text:
        raise PatchError("the diff holds NUL bytes; binary files cannot be changed. Leave them out.")
    if not text.strip():
        return Patch()
    lines = text.split("\n")  # a lone \r belongs to the content of a line, as git sees it
    if lines[-1] == "":
        lines.pop()
    reader = _Reader(lines)
    files: list[FilePatch] = []
    claimed: set[str] = set()
    while not reader.at_end:
        if len(files) == MAX_FILES:
            raise PatchError(f"the diff has more than {MAX_FILES} files. Change fewer.")
        file = reader.section(claimed)
        claimed.update(file.paths)
        files.append(file)
    if len(folders_above(claimed)) > MAX_FOLDERS:
        raise PatchError(f"the diff names files in more than {MAX_FOLDERS} folders. Change fewer.")
    return Patch(tuple(files))


class _Reader:
    """Reads the sections of a diff from its lines. Every error names the number of the line and a remedy."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._at = 0
        self._last = max(number for number, line in enumerate(lines) if line)

    @property
    def at_end(self) -> bool:
        return self._at > self._last

    @property
    def _line(self) -> str | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _refuse(self, reason: str, remedy: str = ADVICE, at: int | None = None) -> PatchError:
        """at: index of the line at fault, the one that is read now if None."""
        return PatchError(f"line {(self._at if at is None else at) + 1} of the diff: {reason}. {remedy}")

    def section(self, claimed: Collection[str]) -> FilePatch:
        """Read one section. claimed: paths that earlier sections name. Raises PatchError."""
        while self._line == "":
            self._at += 1
        header, at = self._line or "", self._at
        if not header.startswith(SECTION):
            remedy = "Write it with `git diff --no-color`." if "\x1b[" in header else ADVICE
            raise self._refuse(f"{header[:60]!r} where a section must begin with 'diff --git'", remedy)
        self._check_header_line(header)
        facts = self._extended_headers()
        file, names = self._claim(facts, header[len(SECTION) :], at)
        for path in file.paths:
            if path in claimed:
                raise self._refuse(
                    f"{path!r} is named by two sections of the diff; each file may have one only", at=at
                )
        has_labels = self._check_labels(names.labels(file.kind == "add", file.kind == "delete"))
        hunks = tuple(self._hunks())
        if has_labels and not hunks:
            raise self._refuse(f"no hunk follows the names of {file.path!r}")
        if not hunks and file.kind == "modify":
            raise self._refuse(f"the section of {file.path!r} changes nothing", "Leave it out.", at)
        if file.kind == "add" and hunks and (len(hunks) > 1 or hunks[0].old_count):
            raise self._refuse(f"{file.path!r} is said to be new, but the hunk has old lines", at=at)
        if file.kind == "delete" and hunks and (len(hunks) > 1 or hunks[0].new_count):
            raise self._refuse(f"{file.path!r} is said to be deleted, but the hunk has new lines", at=at)
        return replace(file, hunks=hunks)

    def _check_header_line(self, line: str) -> None:
        if line.endswith("\r"):
            raise self._refuse(
                "a header ends with a carriage return, so the diff's line ends were changed; "
                "headers must end with a plain newline",
                "Write it again with `git diff > FILE`, and change nothing in it.",
            )

    def _extended_headers(self) -> dict[str, str]:
        """The lines between 'diff --git' and ---: key -> value."""
        facts: dict[str, str] = {}
        self._at += 1
        while (
            (line := self._line) is not None and not line.startswith((SECTION, "--- ", "@@")) and line != ""
        ):
            self._check_header_line(line)
            self._check_is_text(line)
            found = EXTENDED_HEADER.fullmatch(line)
            if found is None:
                raise self._refuse(f"unknown header {line[:60]!r}")
            if found[1] in facts:
                raise self._refuse(f"the header {found[1]!r} occurs twice")
            facts[found[1]] = found[2]
            if found[1].endswith("file mode"):
                self._check_mode(found[2])
            if found[1] == "index":
                index = re.fullmatch(r"[0-9a-f]{4,64}\.\.[0-9a-f]{4,64}(?: (\d{6}))?", found[2])
                if index is None:
                    raise self._refuse(f"unreadable index line {found[2][:60]!r}")
                self._check_mode(index[1])
            self._at += 1
        return facts

    def _check_is_text(self, line: str) -> None:
        """Refuse a header of a change that is no change of a text file's lines or name."""
        if line.startswith(("GIT binary patch", "Binary files ")):
            raise self._refuse("binary files cannot be changed", "Leave them out of the diff.")
        if line.startswith(("old mode ", "new mode ")):
            raise self._refuse(
                "the mode of a file may not be changed",
                "Undo that with `chmod`, or write the diff with `git -c core.fileMode=false diff`.",
            )
        if line.startswith(("copy from ", "copy to ")):
            # A copy does not hold the text that its reverse must remove.
            raise self._refuse("copies are not read", "Write the diff with `git diff --no-renames`.")

    def _check_mode(self, mode: str | None) -> None:
        if mode is not None and mode not in MODES:
            shown, known = ascii(mode[:10])[1:-1], SPECIAL_MODES.get(mode, "unknown")
            raise self._refuse(
                f"mode {shown} is {known}; only plain files may be changed", "Leave it out of the diff."
            )

    def _claim(self, facts: Mapping[str, str], names_text: str, at: int) -> tuple[FilePatch, Names]:
        """What the headers say together. Raises PatchError if they contradict each other.

        facts: extended headers. names_text: the rest of the 'diff --git' line, which has index `at`.
        """
        added, deleted = "new file mode" in facts, "deleted file mode" in facts
        renamed = "rename from" in facts or "rename to" in facts
        if added + deleted + renamed > 1:
            raise self._refuse("a section may add, delete or rename, not several of them", at=at)
        if renamed and not {"rename from", "rename to"} <= facts.keys():
            raise self._refuse("a rename needs both 'rename from' and 'rename to'", at=at)
        try:
            rename = (unquoted(facts["rename from"]), unquoted(facts["rename to"])) if renamed else None
            names = read_names(names_text, rename)
        except ValueError as error:
            raise self._refuse(str(error), PREFIX_ADVICE, at) from error
        if renamed and names.old == names.new:
            raise self._refuse(f"{names.old[:80]!r} is renamed to itself", at=at)
        for name in (names.old, names.new):
            if problem := path_problem(name):
                raise self._refuse(problem, "Leave the file out of the diff.", at)
        kind: Kind = "add" if added else "delete" if deleted else "rename" if renamed else "modify"
        mode = facts.get("new file mode") or facts.get("deleted file mode") or "100644"
        file = FilePatch(
            names.new, None if added else names.old, None if deleted else names.new, kind, MODES[mode]
        )
        return file, names

    def _check_labels(self, expected: tuple[str, str]) -> bool:
        """Read the names after --- and +++, which must be `expected`. False if the section has none."""
        if self._line is None or not self._line.startswith("--- "):
            return False
        for mark, name in zip(("--- ", "+++ "), expected, strict=True):
            line = self._line
            if line is None or not line.startswith(mark):
                raise self._refuse("'---' is not followed by '+++'")
            self._check_header_line(line)
            try:
                found = unquoted(line[4:].removesuffix("\t"))
            except ValueError as error:
                raise self._refuse(str(error)) from error
            if found != name:
                raise self._refuse(
                    f"the name {found[:80]!r} does not agree with the headers above, which say "
                    f"{name[:80]!r}; a new file needs 'new file mode', a deleted one 'deleted file mode', "
                    "each with /dev/null"
                )
            self._at += 1
        return True

    def _hunks(self) -> Iterator[Hunk]:
        done, growth = 0, 0  # old lines that earlier hunks end with; new lines minus old ones so far
        while (line := self._line) is not None and line.startswith("@@"):
            found = HUNK.fullmatch(line)
            if found is None:
                raise self._refuse(f"unreadable hunk header {line[:60]!r}")
            old_start, old_count, new_start, new_count = (int(number or 1) for number in found.groups())
            hunk = Hunk(old_start, old_count, new_start, new_count, ())
            if hunk.old_index < done:
                raise self._refuse("hunks overlap or are out of order, or one starts before line 1")
            if hunk.new_index != hunk.old_index + growth:
                expected = hunk.old_index + growth + (1 if new_count else 0)
                raise self._refuse(
                    f"the hunk says that its new text is at line {new_start}; with the hunks before it, "
                    f"that is line {expected}"
                )
            done = hunk.old_index + old_count
            growth += new_count - old_count
            self._at += 1
            yield replace(hunk, lines=tuple(self._hunk_lines(old_count, new_count)))

    def _hunk_lines(self, old_left: int, new_left: int) -> Iterator[str]:
        """Yield the lines of a hunk whose header promises this many old and new lines."""
        changes = False
        last = ""
        while old_left > 0 or new_left > 0:
            line = self._line
            if line is None or line.startswith(SECTION):
                if not changes or old_left != new_left or old_left > MAX_CUT_LINES:
                    raise self._cut(old_left, new_left)
                # Blanks at the end were cut: these lines were empty context, which `apply` checks.
                yield from [" "] * old_left
                return
            line = line or " "  # some tools strip the space of an empty context line
            mark = line[0]
            if mark == "\\":
                self._check_marker(line, last)
                line = NO_NEWLINE
            elif mark in " +-":
                old_left -= mark in " -"
                new_left -= mark in " +"
                changes = changes or mark != " "
            else:
                raise self._refuse(
                    f"{line[:40]!r} is no line of a hunk; its header promises "
                    f"{old_left} more old and {new_left} more new lines"
                )
            if old_left < 0 or new_left < 0:
                raise self._refuse("the hunk has more lines than its header says")
            self._at += 1
            last = mark
            yield line
        if self._line is not None and self._line.startswith("\\"):
            self._check_marker(self._line, last)
            self._at += 1
            yield NO_NEWLINE
        if not changes:
            raise self._refuse("the hunk changes nothing", "Leave it out.", self._at - 1)

    def _cut(self, old_left: int, new_left: int) -> PatchError:
        return self._refuse(
            f"the diff ends within a hunk, or its section does: the header promises {old_left} more old and "
            f"{new_left} more new lines",
            "Write it again with `git diff > FILE`, and cut nothing of it.",
        )

    def _check_marker(self, line: str, last: str) -> None:
        if not NO_NEWLINE_MARKER.fullmatch(line) or last not in (" ", "+", "-"):
            raise self._refuse(f"unexpected {line[:40]!r}")


def path_problem(path: str) -> str:
    """Why `path` may not occur in a diff; "" if it may."""
    shown = ascii(path[:80])
    if is_too_long(path, MAX_PATH_BYTES):
        return f"the path {shown}… is too long"
    if not is_safe_path(path):
        return f"the path {shown} is not a plain relative path inside the repository"
    if any(part.startswith("-") for part in path.split("/")):
        return f"the path {shown} has a name that starts with '-', like an option; rename it"
    if any(
        char < " " or "\x7f" <= char < "\xa0" or "\ud800" <= char <= "\udfff" or char == '"' for char in path
    ):
        return f"the path {shown} holds control characters, quotes or half a character"
    return ""


# ---- reversing


def reverse_patch(text: str) -> str:
    """The diff that undoes a diff. The solver gets it as its specification. Raises PatchError."""
    return Patch(tuple(_reversed(file) for file in parse_patch(text, len(diff_bytes(text))).files)).text()


def _reversed(file: FilePatch) -> FilePatch:
    kinds: dict[Kind, Kind] = {"add": "delete", "delete": "add", "modify": "modify", "rename": "rename"}
    hunks = tuple(hunk.reversed() for hunk in file.hunks)
    path = file.old_path or file.path
    return FilePatch(path, file.new_path, file.old_path, kinds[file.kind], file.executable, hunks)
