"""The packages of TensorRT and TensorRT-RTX: one Python API, imported, logged and told what it must be told."""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any

from temper.builder.engines.kind import EngineKind
from temper.builder.errors import EngineError

logger = logging.getLogger(__name__)


def load_library(kind: EngineKind[Any]) -> Any:
    """Imports the package.

    Raises:
        EngineError: It is not installed, or only its placeholder without libraries is.
    """
    try:
        trt = importlib.import_module(kind.package)
        _ = trt.Builder
        if trt.__name__ != kind.package:
            # torch-tensorrt-rtx registers tensorrt_rtx under the name tensorrt.
            raise ImportError(f"it is {trt.__name__} {trt.__version__} under another name")
    except (ImportError, OSError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EngineError(
            f"engine {kind.name}: the package {kind.package} cannot be used: {reason}; install "
            f"{kind.title} as NVIDIA's documentation says, or build in docker/builder.Dockerfile"
        ) from error
    return trt


class Logger:
    """Passes the library's messages to logging and keeps the errors for ours."""

    def __init__(self, trt: Any) -> None:
        """Takes the imported package; `native` is what it wants to be given."""
        self.errors: list[str] = []
        lock, severity, errors = threading.Lock(), trt.ILogger.Severity, self.errors
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.DEBUG,
        }

        class Native(trt.ILogger):  # type: ignore[misc]  # untyped base
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: object, message: str) -> None:
                level = levels.get(severity)
                if level is None:
                    return  # VERBOSE: thousands of lines
                if level == logging.ERROR:
                    with lock:
                        errors.append(" ".join(message.split()))
                logger.log(logging.DEBUG if level == logging.ERROR else level, "%s", message)

        self.native = Native()

    @property
    def reason(self) -> str:
        """The first error: those that follow are consequences."""
        return self.errors[0] if self.errors else "no reason given"


def strongly_typed(trt: Any) -> int:
    """Returns the flags of a strongly typed network: TensorRT 10 has weak ones too, TensorRT 11 has no other."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
