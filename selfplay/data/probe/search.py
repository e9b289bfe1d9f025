"""Searches a sandbox for copies of the repository in /testbed, and for other releases of it.

Runs inside the sandbox, with its Python (3.9 or newer) and no other module. Reads from stdin, as JSON: `files`, the paths of code
in /testbed; `modules`, the names of its packages and modules; `projects`, the names under which it is installed; `suffixes`, of the
files to look at. Prints one line of JSON; paths of folders end with a slash. What cannot be read is not in reach of a solver
either: it is left out.
"""

import ast
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import zipfile

ROOT = "/testbed"
NOT_LOOKED_AT = ("proc", "sys", "dev", "testbed", "tmp", "submit")
MIN_NODES = 30  # smaller functions may be equal by chance
ARCHIVES = (".whl", ".zip", ".egg", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_ARCHIVE = 64 << 20  # bytes; also of what is unpacked
MAX_FILE = 4 << 20
PLACES = ("site-packages", "dist-packages")
VENDORED = re.compile(r"_?(vendor|vendored|extern|bundled|third_party)$")
SYMBOLS = (ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)
PYTHONS_TESTS = re.compile(r"/lib(64|32)?/python3(\.\d+)?/(test|idlelib|lib2to3/tests)/")  # nobody's copies, and a third of its library
DEFINED = re.compile(rb"\bdef[ \t]+(\w+)")


def functions(data):
    """(name, hash of the normalised syntax) of each function above the size. No annotations, docstrings, decorators."""
    try:
        module = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("__"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.arg):
                    inner.annotation = None
            body = node.body
            if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body = body[1:]
            parts = [node.args, *body]
            if sum(not isinstance(inner, SYMBOLS) for part in parts for inner in ast.walk(part)) >= MIN_NODES:
                text = "\n".join(map(ast.dump, parts))
                yield node.name, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read(path, most=MAX_FILE):
    if os.path.getsize(path) > most:
        return b""
    with open(path, "rb") as file:
        return file.read()


class Search:
    def __init__(self, files, modules, projects, suffixes):
        self.modules, self.projects, self.suffixes = set(modules), set(projects), tuple(suffixes)
        self.whole, self.sizes, self.known = set(), set(), {}
        for path in files:
            data = read(os.path.join(ROOT, path))
            if len(data) >= 200:  # smaller files may be equal by chance
                self.whole.add(hashlib.sha256(data).digest())
                self.sizes.add(len(data))
            for function in functions(data) if path.endswith(".py") else ():
                self.known.setdefault(function, []).append(path)
        self.names = {name.encode() for name, _ in self.known}
        self.seen = {}  # hash of a file that was looked at -> what `shared` said: many sandboxes hold Python twice
        self.same, self.equal, self.releases, self.archives, self.stores = [], {}, [], [], []

    def is_same(self, data):
        return len(data) in self.sizes and hashlib.sha256(data).digest() in self.whole

    def shared(self, data):
        """The functions of the repository that a Python file has too: [path in the repository, name]."""
        if self.names.isdisjoint(DEFINED.findall(data)):
            return []
        digest = hashlib.sha256(data).digest()
        if digest not in self.seen:
            common = set(functions(data)) & self.known.keys()
            self.seen[digest] = sorted([path, name] for name, key in common for path in self.known[name, key])
        return self.seen[digest]

    def run(self):
        for folder, folders, files in os.walk("/"):
            if folder == "/":
                folders[:] = [name for name in folders if name not in NOT_LOOKED_AT]
            if self.is_store(folder, folders, files):
                self.stores.append(folder + "/")
                folders[:] = []
                continue
            if os.path.basename(folder) in PLACES or VENDORED.match(os.path.basename(folder)):
                self.find_releases(folder, folders, files)
            for name in files:
                try:
                    self.look_at(os.path.join(folder, name))
                except OSError:
                    pass

    def is_store(self, folder, folders, files):
        """Whether it is a git repository, a cache, or a folder of packages to be installed."""
        name = os.path.basename(folder)
        return bool(folders or files) and (
            name in (".git", ".cache", ".hg", "python-wheels")
            or folder.endswith("ensurepip/_bundled")
            or {"objects", "refs"} <= set(folders) and "HEAD" in files
            or name == "pkgs" and "urls.txt" in files
        )

    def find_releases(self, folder, folders, files):
        found = [name for name in folders if name in self.modules]
        found += [name for name in folders if self.is_other_release(folder, name)]
        self.releases += [os.path.join(folder, name) + "/" for name in found]
        folders[:] = [name for name in folders if name not in found]
        for name in [name for name in files if name.endswith(".py") and name[:-3] in self.modules]:
            self.releases += [os.path.join(folder, name), *bytecode(folder, name)]
            files.remove(name)

    def is_other_release(self, folder, name):
        """Whether a folder is what the installation of a release says about itself, not of the workspace's own."""
        stem, _, kind = name.rpartition(".")
        if kind not in ("dist-info", "egg-info") or not self.is_project(stem):
            return False
        try:
            if read(os.path.join(folder, name, "INSTALLER")).strip() == b"selfplay":
                return False
        except OSError:
            pass
        try:
            return b'"editable": true' not in read(os.path.join(folder, name, "direct_url.json"))
        except OSError:
            return True

    def is_project(self, stem):
        return re.sub(r"[-_.]+", "-", stem.split("-")[0]).lower() in self.projects

    def look_at(self, path):
        if path.endswith(ARCHIVES):
            data = read(path, MAX_ARCHIVE)
            if any(self.is_ours(name, content) for name, content in unpacked(data)):
                self.archives.append(path)
        elif path.endswith(self.suffixes) and os.path.getsize(path) <= MAX_FILE:
            is_python = path.endswith(".py")
            if is_python or os.path.getsize(path) in self.sizes:
                data = read(path)
                if self.is_same(data):
                    self.same.append(path)
                if is_python and not PYTHONS_TESTS.search(path) and (shared := self.shared(data)):
                    self.equal[path] = {"functions": shared, "bytecode": bytecode(*os.path.split(path))}

    def is_ours(self, name, data):
        """Whether a member of an archive is a module of the repository, or has source in common with it."""
        parts = name.split("/")
        named = any(part in self.modules or part.removesuffix(".py") in self.modules for part in parts[:-1] + parts[-1:])
        return name.endswith(".py") and (named or self.is_same(data) or bool(self.shared(data)))


def bytecode(folder, name):
    """The compiled files of a module."""
    place = os.path.join(folder, "__pycache__")
    found = os.listdir(place) if os.path.isdir(place) else []
    return [os.path.join(place, other) for other in found if other.startswith(name[:-2]) and other.endswith(".pyc")]


def unpacked(data):
    """Yield the names and contents of the Python files in an archive. Nothing more of one that is damaged."""
    room = MAX_ARCHIVE
    try:
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.infolist():
                    room -= member.file_size
                    if member.filename.endswith(".py") and room >= 0:
                        yield member.filename, archive.read(member)
        else:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    room -= member.size
                    if member.isreg() and member.name.endswith(".py") and room >= 0:
                        yield member.name, archive.extractfile(member).read()
    except Exception:
        return


def has_hypothesis():
    try:
        import hypothesis

        hypothesis.settings.get_profile("ci")
        return True
    except Exception:
        return False


search = Search(**json.load(sys.stdin))
search.run()
print(
    json.dumps(
        {
            "same": search.same,
            "equal": search.equal,
            "releases": search.releases,
            "archives": search.archives,
            "stores": search.stores,
            "hypothesis": has_hypothesis(),
            "python": "%d.%d" % sys.version_info[:2],
        }
    )
)
