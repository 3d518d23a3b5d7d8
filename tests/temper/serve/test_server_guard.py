"""What other programs, other users and web pages can do to the embedded server: nothing but ask."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # ships none
import pytest
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc  # type: ignore[import-untyped]  # ships none

from temper.serve.server import _SUPERVISE as SUPERVISE, TritonServer

pytestmark = pytest.mark.server

AskHttp = Callable[..., tuple[int, str]]

REGION = {"name": "stolen", "key": "/stolen", "byte_size": 64}
RESTRICTED: dict[str, dict[str, Any]] = {
    "SystemSharedMemoryStatus": {},
    "SystemSharedMemoryRegister": REGION,
    "SystemSharedMemoryUnregister": {"name": "stolen"},
    "CudaSharedMemoryStatus": {},
    "CudaSharedMemoryRegister": {"name": "stolen", "raw_handle": b"0" * 64, "byte_size": 64},
    "CudaSharedMemoryUnregister": {"name": "stolen"},
    "TraceSetting": {},
    "LogSettings": {},
}
OPEN: dict[str, dict[str, Any]] = {
    "ServerLive": {},
    "ServerReady": {},
    "ServerMetadata": {},
    "RepositoryIndex": {},
    "ModelReady": {"name": "toy_fp32"},
    "ModelMetadata": {"name": "toy_fp32"},
    "ModelConfig": {"name": "toy_fp32"},
    "ModelStatistics": {"name": "toy_fp32"},
}
RESTRICTED_HTTP = [
    ("GET", "v2/systemsharedmemory/status"),
    ("POST", "v2/systemsharedmemory/region/stolen/register"),
    ("POST", "v2/systemsharedmemory/unregister"),
    ("GET", "v2/cudasharedmemory/status"),
    ("GET", "v2/trace/setting"),
    ("POST", "v2/models/toy_fp32/trace/setting"),
    ("GET", "v2/logging"),
    ("POST", "v2/logging"),
]


def call(server: TritonServer, method: str, fields: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    request = getattr(pb, f"{method}Request")(**fields)
    with grpc.insecure_channel(server.grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return getattr(service, method)(request, metadata=list((headers or {}).items()), timeout=60)


def attack(marker: Path) -> tuple[str, str]:
    """A model's config and code, which writes a file where it runs."""
    tensor = [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}]
    config = {"backend": "python", "max_batch_size": 0, "input": tensor, "output": [{**tensor[0], "name": "y"}]}
    model = "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    return json.dumps(config), f"open({str(marker)!r}, 'w').close()\n{model}"


@pytest.mark.parametrize("model", ["toy_fp32", "evil"])
def test_load_with_files_from_a_web_page_runs_nothing(
    http_server: TritonServer, ask_http: AskHttp, tmp_path: Path, model: str
) -> None:
    config, code = attack(tmp_path / "ran")
    files = {"config": config, "file:1/model.py": base64.b64encode(code.encode()).decode()}
    body = json.dumps({"parameters": files}).encode()
    page = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    url = f"http://{http_server.http_url}/v2/repository/models/{model}"
    status, text = ask_http("POST", f"{url}/load", body, **page)
    assert (status >= 400, "not allowed" in text) == (True, True), text
    status, text = ask_http("POST", f"{url}/unload", b"{}", **page)
    assert (status >= 400, "not allowed" in text) == (True, True), text
    assert not (tmp_path / "ran").exists()
    assert call(http_server, "ModelReady", {"name": "toy_fp32"}).ready


@pytest.mark.parametrize("model", ["toy_fp32", "evil"])
@pytest.mark.parametrize("with_key", [False, True])
def test_load_with_files_over_grpc_runs_nothing(
    server: TritonServer, tmp_path: Path, model: str, with_key: bool
) -> None:
    config, code = attack(tmp_path / "ran")
    parameters = {
        "config": pb.ModelRepositoryParameter(string_param=config),
        "file:1/model.py": pb.ModelRepositoryParameter(bytes_param=code.encode()),
    }
    headers = server.key.grpc_headers if with_key else None
    for method, fields in (
        ("RepositoryModelLoad", {"model_name": model, "parameters": parameters}),
        ("RepositoryModelUnload", {"model_name": model}),
    ):
        with pytest.raises(grpc.RpcError, match="not allowed"):
            call(server, method, fields, headers)
    assert not (tmp_path / "ran").exists()
    assert call(server, "ModelReady", {"name": "toy_fp32"}).ready


@pytest.mark.parametrize(("method", "fields"), RESTRICTED.items(), ids=list(RESTRICTED))
def test_restricted_call_needs_the_key(server: TritonServer, method: str, fields: dict[str, Any]) -> None:
    wrong = dict.fromkeys(server.key.grpc_headers, "0" * 64)
    for headers in ({}, wrong):
        with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
            call(server, method, fields, headers)


@pytest.mark.parametrize(("method", "fields"), OPEN.items(), ids=list(OPEN))
def test_what_clients_need_is_open(server: TritonServer, method: str, fields: dict[str, Any]) -> None:
    call(server, method, fields)


@pytest.mark.parametrize(("method", "path"), RESTRICTED_HTTP, ids=[path for _, path in RESTRICTED_HTTP])
def test_restricted_call_needs_the_key_over_http(
    http_server: TritonServer, ask_http: AskHttp, method: str, path: str
) -> None:
    body = b"{}" if method == "POST" else b""
    status, text = ask_http(method, f"http://{http_server.http_url}/{path}", body)
    assert (status, "restricted" in text) == (403, True), text


def test_key_opens_the_restricted_calls(server: TritonServer) -> None:
    assert "log_file" in call(server, "LogSettings", {}, server.key.grpc_headers).settings


def test_key_is_in_no_command_line_and_in_no_log(http_server: TritonServer) -> None:
    (key,) = http_server.key.grpc_headers.values()
    assert len(key) == 64
    holders = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if key.encode() in path.read_bytes():
                holders.append(path)
        except OSError:
            continue  # it has ended
    assert not holders
    assert key not in http_server.log.read_text()
    assert key not in repr(http_server.key)
    # Where the key is instead, only this user reads.
    assert Path(f"/proc/{http_server.pid}/environ").stat().st_mode & 0o077 == 0


def test_key_that_cannot_be_hidden_is_said_to_be_seen(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As where a seccomp profile forbids ptrace.
    forbid = (
        "from temper.serve import _launch; _launch._libc.ptrace = lambda *_: -1; "
        "from temper.serve._supervise import main"
    )
    monkeypatch.setattr(
        "temper.serve.server._SUPERVISE", SUPERVISE.replace("from temper.serve._supervise import main", forbid)
    )
    with TritonServer(toy_repository) as server:
        assert capsys.readouterr().err.startswith(
            "warning: the kernel forbids ptrace here, so other users of this "
        )
        (key,) = server.key.grpc_headers.values()
        assert key.encode() in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
            call(server, "LogSettings", {})


def test_other_users_read_neither_files_nor_shared_memory(http_server: TritonServer) -> None:
    folder = http_server.log.parent
    regions = list(Path("/dev/shm").glob(f"{folder.name}-*"))
    assert len(regions) >= 2
    assert {path.stat().st_mode & 0o077 for path in (folder, http_server.log, *regions)} == {0}


@pytest.mark.parametrize("http", [False, True])
def test_server_listens_on_loopback_only(server: TritonServer, http_server: TritonServer, http: bool) -> None:
    one = http_server if http else server
    assert (one.http_url is not None) == http
    sockets = {str(path.readlink()) for path in Path(f"/proc/{one.pid}/fd").iterdir() if path.is_symlink()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{one.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    listening = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert {int(port, 16) for _, port in listening} == {one.grpc_port, one.metrics_port} | (
        {one.http_port} if http else set()
    )
    # 127.0.0.1, plain or as an IPv4 address in IPv6 clothing.
    assert {address for address, _ in listening} <= {"0100007F", "0000000000000000FFFF00000100007F"}
