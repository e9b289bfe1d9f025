"""Engines that are not the usual local one: over TCP with TLS, without this machine's files, Podman."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import open_or_skip
from second_engine import SecondEngine, second_engine
from selfplay.errors import EnvironmentBuildError, PrerequisiteError
from selfplay.sandbox import conformance, docker_engine, docker_sandbox
from selfplay.sandbox.base import SandboxSpec
from selfplay.sandbox.docker_engine import engine_host
from selfplay.sandbox.docker_index import sent_along
from selfplay.sandbox.docker_sandbox import BASE_IMAGE, DockerBackend
from selfplay.sandbox.index_access import IndexAccess
from selfplay.sandbox.index_proxy import ProxyRules

SOME_CHECKS = (
    conformance.keeps_folder_and_exported_variables,
    conformance.passes_bytes_through,
    conformance.has_no_network,
    conformance.files_go_in_and_out,
    conformance.many_work_at_once,
)


@pytest.fixture(scope="module")
def engine() -> Iterator[SecondEngine]:
    open_or_skip("docker")
    with second_engine(BASE_IMAGE) as found:
        yield found


def use(variables: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_TLS"):
        patch.delenv(name, raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)
    docker_engine.shared_client.cache_clear()


@pytest.mark.sandbox
def test_sandboxes_of_an_engine_behind_tls(engine: SecondEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    use(engine.variables(), monkeypatch)
    for check in SOME_CHECKS:
        check(DockerBackend(), SandboxSpec(environment=""))


@pytest.mark.sandbox
def test_an_engine_behind_tls_refuses_whoever_has_no_certificate(
    engine: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    use({"DOCKER_HOST": engine.address}, monkeypatch)
    with pytest.raises(PrerequisiteError, match="HTTPS.*set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH"):
        DockerBackend().check()


@pytest.mark.sandbox
@pytest.mark.parametrize("way", ["tls", "local socket"])
def test_a_build_elsewhere_has_the_files_that_pips_settings_name(
    engine: SecondEngine, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its local socket, too: the engine may run in a virtual machine. It has no venv module here."""
    use(engine.variables() if way == "tls" else {"DOCKER_HOST": engine.local}, monkeypatch)
    monkeypatch.setattr(docker_sandbox, "_seen", {})
    certificate = tmp_path / "own.pem"
    certificate.write_text("a certificate\n")
    access = IndexAccess({"PIP_CERT": str(certificate)}, "", (certificate,), ProxyRules())
    monkeypatch.setattr(docker_sandbox, "index_access", lambda: access)
    # The network that a build has elsewhere: this engine has none at all.
    monkeypatch.setattr("selfplay.sandbox.docker_container.ELSEWHERE", "none")
    monkeypatch.setattr(
        "selfplay.sandbox.environment_builds.EnvironmentBuild.steps",
        lambda self, python, forwarding: f"{forwarding}{self.script}".encode(),
    )
    log = tmp_path / "log.txt"
    with pytest.raises(EnvironmentBuildError):
        DockerBackend().build_environment("elsewhere", 'echo $PIP_CERT; cat "$PIP_CERT"; exit 3', 60, log)
    assert log.read_text() == "/submit/index-0-own.pem\na certificate\n"


def test_the_paths_in_pips_settings_are_those_of_the_build(tmp_path: Path) -> None:
    certificate, longer = tmp_path / "a", tmp_path / "ab"
    certificate.write_text("one")
    longer.write_text("two")
    rules = ProxyRules(upstream={"https": "http://proxy:3128"})
    access = IndexAccess(
        {"PIP_CERT": str(longer), "SSL_CERT_DIR": str(tmp_path)},
        f"[global]\ncert = {certificate}\n",
        (certificate, longer, tmp_path),
        rules,
    )
    sent, files = sent_along(access)
    assert sent.variables["PIP_CERT"] == "/submit/index-0-ab"
    assert sent.pip_conf == "[global]\ncert = /submit/index-1-a\n"
    assert files == {"index-0-ab": b"two", "index-1-a": b"one"}
    assert sent.variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert "SSL_CERT_DIR" not in sent.variables


def test_a_folder_in_pips_settings_is_refused_with_the_reason(tmp_path: Path) -> None:
    access = IndexAccess({"PIP_FIND_LINKS": str(tmp_path)}, "", (tmp_path,), ProxyRules())
    with pytest.raises(PrerequisiteError, match="which the engine does not see. Name an index by its URL"):
        sent_along(access)


def test_podmans_socket_is_found_where_docker_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use({"XDG_RUNTIME_DIR": str(tmp_path)}, monkeypatch)
    monkeypatch.setattr(docker_engine, "USUAL_SOCKET", str(tmp_path / "docker-has-none.sock"))
    assert engine_host() == ""
    (tmp_path / "podman").mkdir()
    path = tmp_path / "podman" / "podman.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert engine_host() == f"unix://{path}"
        monkeypatch.setenv("DOCKER_HOST", "tcp://there:2376")
        assert engine_host() == "tcp://there:2376"
