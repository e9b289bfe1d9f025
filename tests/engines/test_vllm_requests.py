"""Requests to vLLM servers and their answers.

A double stands in for faults that a real server does not have.
"""

import copy
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfplay.agent.agent import Conversation
from selfplay.config import load_config
from selfplay.engines import vllm_engine
from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.engines.vllm_client import Client
from selfplay.engines.vllm_engine import VllmEngine
from selfplay.engines.vllm_launch import Launch, command, hide, variables
from selfplay.engines.vllm_log import explain
from selfplay.engines.vllm_requests import check_request, read_answer, request_body
from selfplay.engines.vllm_servers import ServerSet, sweep
from selfplay.errors import ConfigError, EngineError, ServerLost, WeightSyncError
from selfplay.sandbox.owners import owner
from selfplay.weights.native_transfer import NativeSender, Receivers, SendReport, WeightSource
from selfplay.weights.verification import compare_digests
from selfplay.weights.weight_sync import FileWeightSync, NativeWeightSync, write_shards
from vllm_double import STOP, Double, doubles, generated, wait_until

REQUEST = GenerationRequest((5, 6, 7), 8, 41, frozenset({STOP}), "solver/u1-sol0/3/0")
WEIGHTS = {"model.norm.weight": torch.ones(4)}


def open_engine(
    urls: list[str],
    deadline_s: float = 5.0,
    request_timeout_s: float = 5.0,
    report: Callable[[str], None] = lambda _: None,
) -> VllmEngine:
    sync = FileWeightSync("model", torch.float32, deadline_s)
    return VllmEngine(
        Launch("model", 4096, 4),
        sync,
        ServerSet(urls=tuple(urls)),
        request_timeout_s=request_timeout_s,
        report=report,
    )


# -- one request and its answer ------------------------------------------------------------------------------


def test_a_request_sets_every_filter_that_could_reshape_the_distribution() -> None:
    params = request_body(REQUEST, Sampling(temperature=0.7))["sampling_params"]
    expected = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: params[name] for name in expected} == expected
    assert request_body(REQUEST, Sampling(top_p=0.95))["sampling_params"]["top_p"] == 0.95
    assert (params["seed"], params["stop_token_ids"], params["ignore_eos"], params["logprobs"]) == (
        41,
        [STOP],
        True,
        0,
    )


@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=1.1), Sampling(top_k=5), Sampling(min_p=0.1), Sampling(temperature=-1)]
)
def test_filters_that_reshape_the_distribution_are_refused(sampling: Sampling) -> None:
    with pytest.raises(EngineError, match="importance ratio"):
        check_request(REQUEST, sampling, 100)


def test_a_request_beyond_the_context_is_refused() -> None:
    with pytest.raises(EngineError, match="wants 11 tokens, the engine's context is 10"):
        check_request(REQUEST, Sampling(), 10)


def test_an_answer_becomes_a_completion_with_the_version_of_each_token() -> None:
    answer = generated([11, 12, 13, STOP], "4")
    answer["choices"][0]["weight_versions"] = [
        {"version": "4", "start": 0, "end": 3},
        {"version": "5", "start": 3, "end": 4},
    ]
    done = read_answer(answer, REQUEST)
    assert done == Completion((11, 12, 13, STOP), (-0.5,) * 4, 4, True, {"reused": 3.0}, ((0, 4), (3, 5)))


def _spoil(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    answer = copy.deepcopy(generated([11, 12, STOP]))
    change(answer["choices"][0])
    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": []}, "cannot be read"),
        (_spoil(lambda c: c.pop("logprobs")), "cannot be read"),
        (_spoil(lambda c: c["weight_versions"][0].update(version="default")), "cannot be read"),
        (_spoil(lambda c: c["logprobs"]["content"].pop()), "3 tokens came with 2 log-probabilities"),
        (_spoil(lambda c: c["logprobs"]["content"][0].update(token_id=9)), "or with those of other tokens"),
        (_spoil(lambda c: c["logprobs"]["content"][0].update(logprob=-9999.0)), "are not log-probabilities"),
        (_spoil(lambda c: c["weight_versions"][0].update(end=2)), "do not cover its 3 tokens"),
        (generated([11, STOP, 12]), "stop ids do not explain"),
        (generated([11, 12]), "stop ids do not explain"),
        (generated([]), "0 tokens came"),
        (generated([11] * 9), "9 tokens came"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_answer(answer, REQUEST)


def test_an_episode_records_an_update_that_came_while_a_turn_was_sampled() -> None:
    talk = Conversation(chat=None, token_ids=[1, 2, 3], messages=[])  # type: ignore[arg-type]
    talk.add_action(Completion((7, 8, 9), (-1.0,) * 3, 4, False, {}, ((0, 4), (2, 5))), "text")
    talk.add_action(Completion((7,), (-1.0,), 5, False), "text")
    assert talk.weight_versions == [(3, 4), (5, 5)]


# -- servers that fail ---------------------------------------------------------------------------------------


def test_a_server_that_dies_in_a_request_is_left_and_another_samples_with_the_same_seed() -> None:
    with doubles(2) as both:
        engine = open_engine([double.url for double in both])
        for double in both:
            double.faults["/inference/v1/generate"] = "die" if double is both[0] else None
        done = [
            engine.generate(
                [GenerationRequest((5,), 8, 41, frozenset({STOP}), f"solver/g{n}/0/0")], Sampling()
            )[0]
            for n in range(6)
        ]
        assert {completion.token_ids for completion in done} == {(11 + 41 % 7, 12, STOP)}
        assert max(completion.metadata["tries"] for completion in done) == 2
        assert {body["sampling_params"]["seed"] for body in both[1].bodies} == {41}
        both[0].faults.clear()
        wait_until(lambda: len(engine.servers()) == 2)
        engine.close()


def test_without_any_server_left_the_error_has_the_reason() -> None:
    with doubles(1) as (double,):
        engine = open_engine([double.url])
        double.faults = {"/inference/v1/generate": "die", "/health": 503}
        with pytest.raises(
            EngineError, match="could not be opened 3 times in a row.*/health.*fix engine.urls"
        ):
            engine.generate([REQUEST], Sampling())
        engine.close()


def test_a_server_that_does_not_come_up_is_given_up_while_another_answers_and_comes_up_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_engine, "_WATCH_S", 0.05)
    messages: list[str] = []
    with doubles(2) as (gone, other):
        engine = open_engine([gone.url, other.url], report=messages.append)

        def ask(number: int) -> Completion:
            return engine.generate(
                [GenerationRequest((5,), 8, 41, frozenset({STOP}), f"solver/g{number}/0/0")], Sampling()
            )[0]

        gone.faults = {"/inference/v1/generate": "die", "/health": 503}
        answered = itertools.count()
        wait_until(
            lambda: ask(next(answered)) and sum("could not be opened again" in text for text in messages) == 3
        )
        for _ in range(10):
            assert ask(next(answered)).stopped
            time.sleep(0.03)
        assert sum("could not be opened again" in text for text in messages) == 3
        other.faults = {"/inference/v1/generate": "die", "/health": 503}
        threading.Timer(0.08, other.faults.clear).start()
        # Waited for the other, instead of failing because one was given up.
        assert ask(next(answered)).metadata["tries"] == 2
        assert list(engine.servers()) == ["vllm-1"]
        engine.close()


def test_a_request_that_the_server_refuses_is_not_tried_elsewhere() -> None:
    with doubles(1) as (double,):
        engine = open_engine([double.url])
        double.faults["/inference/v1/generate"] = 400
        with pytest.raises(EngineError, match="refuses POST /inference/v1/generate: 400 no such thing"):
            engine.generate([REQUEST], Sampling())
        assert double.calls.count("/inference/v1/generate") == 1
        engine.close()


def test_a_silent_server_has_a_deadline() -> None:
    with doubles(1) as (double,):
        double.faults["/health"] = "hang"
        with pytest.raises(ServerLost, match=r"did not answer GET /health within 0.2 s"):
            Client("vllm-0", double.url).call("GET", "/health", deadline_s=0.2)


def test_a_server_without_weight_updates_is_refused_with_the_remedy() -> None:
    with doubles(1) as (double,):
        double.faults["/weight_info"] = 404
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
            open_engine([double.url])


def test_an_address_where_nothing_listens_is_named() -> None:
    with pytest.raises(EngineError, match="http://127.0.0.1:9.*refused.*fix engine.urls"):
        open_engine(["http://127.0.0.1:9"])


def test_a_server_runs_as_many_requests_as_its_bound_and_no_more() -> None:
    with doubles(1) as (double,):
        engine = open_engine([double.url], request_timeout_s=60)
        counts: list[int] = []
        running: list[int] = []
        full = threading.Barrier(4)  # breaks unless four requests are there together

        def crowded(
            path: str, body: dict[str, Any], inner: Callable[[str, dict[str, Any]], Any] = double.answer
        ) -> Any:
            if path == "/inference/v1/generate":
                running.append(1)
                full.wait(30)
                counts.append(len(running))
                running.pop()
            return inner(path, body)

        double.answer = crowded  # type: ignore[method-assign]
        engine.generate(
            [GenerationRequest((5,), 8, n, frozenset({STOP}), f"solver/g/{n}/0") for n in range(20)],
            Sampling(),
        )
        assert max(counts) == 4
        engine.close()


# -- weights -------------------------------------------------------------------------------------------------


def test_new_weights_come_while_the_server_is_paused_and_its_cache_is_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FileWeightSync, "verify", lambda *_: {})
    with doubles(1) as (double,):
        engine = open_engine([double.url])
        double.calls.clear()
        engine.load_weights(WEIGHTS, 3)
        assert double.calls == [
            "/pause",
            "/collective_rpc",
            "/server_info",
            "/update_weight_version",
            "/reset_prefix_cache",
            "/resume",
        ]
        assert (engine.weight_version, double.version) == (3, "3")
        assert engine.last_sync["sync/bytes"] > 16
        engine.close()


def test_a_hang_in_an_update_is_an_error_with_what_each_side_waited_for() -> None:
    with doubles(1) as (double,):
        sync = FileWeightSync("model", torch.float32, 0.2)
        sync.write(WEIGHTS, 3)
        double.faults["/pause"] = "hang"
        with pytest.raises(
            ServerLost,
            match="version 3: the trainer waited for the end of its running step.*"
            "vllm-0.*/pause.* within 0.2 s",
        ):
            sync.deliver(Client("vllm-0", double.url))
        sync.close()


def test_a_cache_that_is_not_emptied_is_an_error_and_the_server_stays_paused() -> None:
    with doubles(1) as (double,):
        sync = FileWeightSync("model", torch.float32, 5)
        sync.write(WEIGHTS, 3)
        double.faults["/reset_prefix_cache"] = {"success": False}
        with pytest.raises(WeightSyncError, match="keeps a prefix cache of older weights"):
            sync.deliver(Client("vllm-0", double.url))
        assert "/resume" not in double.calls
        sync.close()


def test_a_server_that_comes_back_takes_the_published_weights_before_any_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FileWeightSync, "verify", lambda *_: {})
    with doubles(1) as (double,):
        engine = open_engine([double.url])
        engine.load_weights(WEIGHTS, 3)
        double.faults["/inference/v1/generate"] = "die"
        double.version = "default"  # as a server that was started again says
        double.calls.clear()

        def recover(
            path: str, body: dict[str, Any], inner: Callable[[str, dict[str, Any]], Any] = double.answer
        ) -> Any:
            if path == "/weight_info":
                double.faults.clear()
            return inner(path, body)

        double.answer = recover  # type: ignore[method-assign]
        assert engine.generate([REQUEST], Sampling())[0].weight_version == 3
        assert double.calls.index("/collective_rpc") < len(double.calls) - 1 - double.calls[::-1].index(
            "/inference/v1/generate"
        )
        engine.close()


class Sends:
    """Stands for the trainer's processes."""

    def __init__(self, double: Double, error: str = "") -> None:
        self.double, self.error = double, error

    def send_weights(self, receivers: Receivers) -> SendReport:
        self.double.calls.append("sent")
        assert receivers == Receivers("gloo", (self.double.url,), "float32", 5.0)
        return SendReport(16, 0.1, self.error)


def test_weights_come_from_the_trainer_itself_between_pause_and_an_emptied_cache() -> None:
    with doubles(1) as (double,):
        sync = NativeWeightSync("model", torch.float32, "gloo", Sends(double), lambda: None, 5.0)
        figures, lost = sync.publish({}, 3, [Client("vllm-0", double.url)])
        assert double.calls == [
            "/pause",
            "sent",
            "/server_info",
            "/update_weight_version",
            "/reset_prefix_cache",
            "/resume",
        ]
        assert (double.version, lost, figures["sync/bytes"]) == ("3", {}, 16)


def test_a_server_whose_transfer_failed_never_continues(tmp_path: Path) -> None:
    with doubles(1) as (double,):
        sync = NativeWeightSync(
            "model", torch.float32, "gloo", Sends(double, "gloo: gone"), lambda: tmp_path, 5.0
        )
        client = Client("vllm-0", double.url)
        _, lost = sync.publish({}, 3, [client])
        assert str(lost[client]) == "version 3: the transfer by gloo broke off after 0.1 s. gloo: gone"
        assert double.calls == ["/pause", "sent"] and double.version == "default"
        double.calls.clear()
        sync.deliver(client)  # the one that was started in its place
        assert "/collective_rpc" in double.calls and double.version == "3"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_gathers_to_the_end_even_if_the_transfer_fails(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no way to the servers\nand more")

    monkeypatch.setattr(NativeSender, "_meet", refuse)
    held, gathered = {"a": torch.ones(2), "b": torch.ones(3)}, []

    def groups() -> Iterator[dict[str, torch.Tensor]]:
        for name, value in held.items():
            yield {} if rank else {name: value}
            gathered.append(name)

    receivers = Receivers("gloo", ("http://127.0.0.1:1",), "float32", 5.0)
    report = NativeSender(rank).send(receivers, WeightSource(receivers, held, groups))
    assert gathered == ["a", "b"]  # else the other ranks would wait in a collective for ever
    reason = (
        "OSError: no way to the servers. The trainer was at nothing yet; no server was asked for anything"
    )
    assert report.error == ("" if rank else reason)


def test_weights_are_written_in_shards_that_hold_each_tensor_once(tmp_path: Path) -> None:
    weights = {f"layer.{n}": torch.full((8, 8), float(n)) for n in range(5)}
    written = write_shards(weights.items(), tmp_path, torch.bfloat16, shard_bytes=256)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3 and written == sum(file.stat().st_size for file in files)
    read = {name: value for file in files for name, value in load_file(file).items()}
    assert {name: (value.dtype, float(value[0, 0])) for name, value in read.items()} == {
        f"layer.{n}": (torch.bfloat16, float(n)) for n in range(5)
    }


def test_files_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    machine, boot, namespace, pid, _ = owner().split("-")
    # Another process once had our id.
    left = tmp_path / f"selfplay-{machine}-{boot}-{namespace}-{pid}-1-1-weights"
    left.mkdir()
    first = FileWeightSync("model", torch.float32, folder=tmp_path)
    second = FileWeightSync("model", torch.float32, folder=tmp_path)
    assert not left.exists() and len(list(tmp_path.iterdir())) == 2
    first.close()
    second.close()
    assert not list(tmp_path.iterdir())


def test_a_vector_that_differs_in_one_number_is_found() -> None:
    import hashlib

    held = {"a": torch.ones(4), "b": torch.zeros(4), "matrix": torch.ones(2, 2)}
    digests = {
        f"dp0:tp0:{name}": hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in held.items()
    }
    assert compare_digests(digests, held, torch.float32) == (2, [])
    held["b"][3] = 1e-7
    assert compare_digests(digests, held, torch.float32) == (1, ["b"])


# -- settings and messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine.urls=['http://127.0.0.1:1']"], "mean something only with engine.type = 'vllm'"),
        (["engine.type=vllm", "engine.urls=['127.0.0.1:8000']"], "is not the address of a server"),
        (["engine.type=vllm", "engine.urls=['http://a:1','http://a:1/']"], "names a server twice"),
        (["engine.type=vllm", "engine.urls=['http://a:1']", "engine.servers=2"], "set one of the two"),
        (
            ["engine.type=vllm", "engine.options=['--port=1']"],
            "--port is set by selfplay, which takes a free one",
        ),
        (
            ["engine.type=vllm", "engine.options=['--weight-transfer-config={}']"],
            "--weight-transfer-config is set by engine.sync",
        ),
        (["engine.sync=nccl"], "mean something only with engine.type = 'vllm'"),
        (
            ["engine.type=vllm", "engine.sync=nccl", "engine.urls=['http://a:1']"],
            "engine.sync = 'nccl' is for servers of our own",
        ),
        (
            ["engine.type=vllm", "engine.sync=ipc", "trainer.type=deepspeed", "trainer.ranks=2"],
            "trainer.ranks is 2; set engine.sync = 'nccl'",
        ),
        (["engine.type=vllm", "engine.servers=0"], "needs a number of at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_a_servers_arguments_hold_what_settings_decide() -> None:
    arguments = command(Launch("some/model", 2048, 16, options=("--seed=3",)), 1234, "policy")
    pairs = dict(itertools.pairwise(arguments))
    expected = {
        "--model": "some/model",
        "--port": "1234",
        "--max-model-len": "2048",
        "--max-num-seqs": "16",
        "--generation-config": "vllm",
    }
    assert {name: pairs[name] for name in expected} == expected
    assert arguments[-1] == "--seed=3" and "--weight-transfer-config" not in pairs
    native = dict(
        itertools.pairwise(command(Launch("some/model", 2048, 16, transfer="gloo"), 1234, "policy"))
    )
    assert native["--weight-transfer-config"] == '{"backend": "gloo"}'


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "(APIServer pid=7) INFO 11-21 20:35:56 [api.py:3] started\n"
            "(APIServer pid=7) OSError: [Errno 98] Address already in use\n",
            "OSError: [Errno 98] Address already in use. Another program has taken the port",
        ),
        (
            "(EngineCore pid=9) ERROR 11-21 20:35:56 [core.py:1512] ValueError: To serve at least one "
            "request (0.5 GiB KV cache is needed, which is larger than the available KV cache "
            "memory (0.1 GiB).\n"
            "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.\n",
            "Raise engine.cache_mb",
        ),
        (
            "(APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 validation error for "
            "ModelConfig\n"
            "(APIServer pid=7)   Value error, User-specified max_model_len (8192) is greater than the "
            "derived max_model_len (max_position_embeddings=4096.0)\n",
            "max_model_len (8192) is greater than the derived max_model_len "
            "(max_position_embeddings=4096.0). "
            "Lower agent.context_tokens",
        ),
        (
            "(Worker pid=9) ERROR 11-21 20:35:56 [x.py:1] "
            "RuntimeError: operator torchvision::nms does not exist\n",
            "RuntimeError: operator torchvision::nms does not exist. "
            "torchvision and torch are of different builds",
        ),
        (
            "(Worker pid=9) ERROR 11-21 20:35:56 [x.py:1] KeyError: 'layers.9'\n"
            "RuntimeError: failed. See root cause above\n",
            "KeyError: 'layers.9'.",
        ),
        ("", "its log is empty."),
    ],
)
def test_a_servers_log_explains_the_reason_and_the_remedy(log: str, expected: str) -> None:
    assert expected in explain(log)


def test_only_processes_of_a_killed_owner_are_ended() -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    living = variables(Launch("model", 64, 1))
    machine, boot, namespace, pid, _ = living["SELFPLAY_SERVER_OWNER"].split("-")
    # Another process once had our id.
    dead = {**living, "SELFPLAY_SERVER_OWNER": f"{machine}-{boot}-{namespace}-{pid}-1"}
    kept, left = (
        subprocess.Popen([sys.executable, "-S", "-c", code], env=environment, stdout=subprocess.PIPE)
        for environment in (living, dead)
    )
    for process in (kept, left):
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.stdout.close()
    assert sweep() == [left.pid]
    assert left.wait(10) == -signal.SIGKILL and kept.poll() is None
    kept.kill()
    kept.wait()


def test_packages_built_for_another_torch_are_hidden_from_servers(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    code = "import importlib.util; print(importlib.util.find_spec('torchvision'))"
    for hidden, expected in (("", "ModuleSpec"), ("torchvision", "None")):
        environment = {**hide((hidden,) if hidden else (), str(tmp_path)), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
