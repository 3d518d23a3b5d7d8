"""What a client knows of a model while another version takes its place: at the seam, no server."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from temper.client import AsyncClient, Client, ModelInfo, ModelNotFound, protocol
from temper.client.wire import pb

Key = tuple[str, str]
KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])
INFO = ModelInfo(
    name="model",
    version="1",
    input_name="image",
    image_shape=(2,),
    output_name="class",
    num_classes=1,
    max_batch_size=4,
    input_dtype="UINT8",
    output_dtype="INT64",
    output_shape=(1,),
)


def result(answer: Any) -> Any:
    """What a call returned, of either kind of client."""
    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    return asyncio.run(wait())


class Promoting:
    """A server, as `Calls` and `AsyncCalls` show it, that promotes versions after it has named the newest one."""

    def __init__(self, num_promotions: int, *, twin: bool) -> None:
        """Begin with version 1."""
        self.version, self.num_promotions, self.twin = 1, num_promotions, twin
        self.asked: list[str] = []

    def call(self, method: str, request: Any, limit_s: float) -> Any:
        if not self.twin:
            return self.answer(method, request)

        async def answer() -> Any:
            return self.answer(method, request)

        return answer()

    def answer(self, method: str, request: Any) -> Any:
        self.asked.append(method)
        version = getattr(request, "version", "") or str(self.version)
        if version != str(self.version):
            raise ModelNotFound(f"version {version} is not ready", code="UNAVAILABLE")
        if method == "ModelConfig":
            return pb.ModelConfigResponse(config={"max_batch_size": 4})
        if method == "RepositoryIndex":
            return pb.RepositoryIndexResponse()
        found = pb.ModelMetadataResponse(name="model", versions=[version])
        found.inputs.add(name="image", datatype="UINT8", shape=[-1, 2])
        found.outputs.add(name="class", datatype="INT64", shape=[-1, 1])
        # The second question of each time is what is served now.
        if self.asked[-2:-1] != ["ModelConfig"] and self.num_promotions:
            self.num_promotions -= 1
            self.version += 1
        return found


def client_of(kind: Any, server: Promoting, monkeypatch: pytest.MonkeyPatch) -> Any:
    one = kind("127.0.0.1:1")
    if kind is Client:
        one.close()
        monkeypatch.setattr(one, "_calls", server)
    else:
        monkeypatch.setattr(one, "_opened", server)
    return one


@KINDS
def test_model_promoted_between_the_questions_is_learned_once_more(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Promoting(1, twin=kind is AsyncClient)
    assert result(client_of(kind, server, monkeypatch).model_info("model")).version == "2"


@KINDS
def test_model_that_is_promoted_each_time_is_not_asked_for_ever(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Promoting(100, twin=kind is AsyncClient)
    with pytest.raises(ModelNotFound):
        result(client_of(kind, server, monkeypatch).model_info("model"))
    assert server.asked.count("ModelConfig") == protocol.MAX_CALLS


@KINDS
def test_version_that_was_asked_for_is_not_replaced_by_another(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Promoting(1, twin=kind is AsyncClient)
    with pytest.raises(ModelNotFound, match=r"model 'model' on 127\.0\.0\.1:1 has no version 1; it serves: 2"):
        result(client_of(kind, server, monkeypatch).model_info("model", "1"))
    assert server.asked.count("ModelConfig") == 1


class Contested(dict[Key, ModelInfo]):
    """What is put in is taken out at once, as by another thread that finds another version answering."""

    def __setitem__(self, key: Key, info: ModelInfo) -> None:
        """Put it in, and take it out."""
        super().__setitem__(key, info)
        del self[key]


@KINDS
def test_model_forgotten_by_another_thread_is_returned_all_the_same(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Promoting(0, twin=kind is AsyncClient)
    one = client_of(kind, server, monkeypatch)
    monkeypatch.setattr(one, "_infos", Contested())
    assert result(one.model_info("model")) == INFO
    assert result(one._changed(INFO, "")) is None
    server.version = 2
    assert result(one._changed(INFO, "")).version == "2"
