"""How the supervisor starts tritonserver, so that no other user sees its key or its shared memory.

Part of the supervisor: only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import sys

from temper.serve._stubs import read_file, read_stat

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PTRACE_TRACEME, _PTRACE_DETACH = 0, 17
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4
# By machine: its number as an audit architecture, and of the system calls seccomp and fchmod.
_NUMBERS = {"x86_64": (0xC000003E, 317, 91), "aarch64": (0xC00000B7, 277, 52)}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class CannotHideError(OSError):
    """The kernel forbids to trace one's own child, so the secret arguments would be in the command line."""


def launch(
    command: list[str], secrets: list[str], environment: dict[str, str], folder: str
) -> subprocess.Popen[bytes]:
    """Start the command with further arguments that no other user can read.

    Everybody may read a command line, in /proc/PID/cmdline, and Triton takes its key nowhere else. So a secret
    argument is put into the environment, which only the user can read; the process is held where it begins, and
    the pointer to a stand-in among its arguments is turned to the secret: it is in no command line at any time.

    Raises:
        CannotHideError: The kernel forbids to trace one's own child (a strict seccomp or Yama); nothing runs.
        OSError: The command cannot be started.
    """
    hidden = {f"TEMPER_ARGUMENT_{number}": secret for number, secret in enumerate(secrets)}
    stand_ins = [f"--temper-argument-{number}" for number in range(len(secrets))]
    parent = os.getpid()

    try:
        process = subprocess.Popen(
            [*command, *stand_ins],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env={**environment, **hidden},
            cwd=folder,
            umask=0o077,
            process_group=0,
            preexec_fn=lambda: _prepare(parent, bool(secrets)),
        )
    except subprocess.SubprocessError as error:  # all that Python says of a failure in `_prepare`
        raise CannotHideError("the kernel forbids it") from error
    if secrets:
        try:
            _put_in(process.pid, stand_ins, list(hidden))
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, OSError):
                raise CannotHideError(str(error)) from error
            raise
    return process


def _prepare(parent: int, trace: bool) -> None:
    """In the child, before the command: the signals as usual, and the end together with the supervisor."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    _keep_modes()
    if trace and _libc.ptrace(_PTRACE_TRACEME, 0, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _put_in(pid: int, stand_ins: list[str], variables: list[str]) -> None:
    """Wait until the process is held, turn its pointers and let it go."""
    os.waitpid(pid, 0)
    try:
        _turn_pointers(pid, stand_ins, variables)
    except (LookupError, ValueError) as error:
        raise OSError(f"process {pid} is gone, or its stack is not what Linux makes") from error
    if _libc.ptrace(_PTRACE_DETACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _turn_pointers(pid: int, stand_ins: list[str], variables: list[str]) -> None:
    """Let the stand-ins among a held process's arguments point to the values of variables.

    At the beginning of a program its stack holds, upwards, the pointers, the arguments and the environment.
    """
    arguments_at, environment_at, end = (int(read_stat(pid)[index]) for index in (45, 47, 48))
    maps = read_file(f"/proc/{pid}/maps").decode().splitlines()
    mapped = [line for line in maps if line.endswith("[stack]")]
    stack_at = int(mapped[0].split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        stack = os.pread(memory.fileno(), end - stack_at, stack_at)
        for stand_in, variable in zip(stand_ins, variables, strict=True):
            argument = stack.index(f"\0{stand_in}\0".encode(), arguments_at - stack_at - 1) + 1
            value = stack.index(f"\0{variable}=".encode(), environment_at - stack_at - 1) + len(variable) + 2
            pointer = stack.index(struct.pack("P", stack_at + argument))
            os.pwrite(memory.fileno(), struct.pack("P", stack_at + value), stack_at + pointer)


def _keep_modes() -> None:
    """Let fchmod do nothing in this process and those that it starts.

    The regions of shared memory hold the images that are asked about. Boost makes them readable for everybody with
    fchmod, whatever the umask says. Where the kernel allows no filter, they stay so.
    """
    if platform.machine() not in _NUMBERS:
        return
    machine, seccomp, fchmod = _NUMBERS[platform.machine()]
    load, equal, done = 0x20, 0x15, 0x06
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, 3, machine),
        (load, 0, 0, 0),  # the system call
        (equal, 0, 1, fchmod),
        (done, 0, 0, 0x00050000),  # fail with errno 0: succeed without doing it
        (done, 0, 0, 0x7FFF0000),  # allow
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, program)
