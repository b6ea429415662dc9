"""Several machines made on one: network namespaces on a bridge. Linux, root, iproute2, util-linux.

Each has an address, a host name, a process table and a /tmp/ray of its own, and knows the others by name; all see the
same files, as machines see the same mount.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_BRIDGE = "acouslic-bridge"
_NETWORK = "10.77.0"


@dataclass(frozen=True)
class Machine:
    """One of them."""

    name: str
    address: str
    first_pid: int
    """Of its first process, as it is called outside: all others end with it."""

    def words(self, command: Sequence[str]) -> list[str]:
        """A command that runs `command` there."""
        return ["nsenter", f"--target={self.first_pid}", "--mount", "--uts", "--net", "--pid", *command]

    def kill(self) -> None:
        """End all its processes at once, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first_pid, signal.SIGKILL)

    def cut(self) -> None:
        """Pull its cable: it works on, and nobody hears of it."""
        _ip(f"link set {self.name} down")


@contextlib.contextmanager
def machines(names: Sequence[str]) -> Iterator[list[Machine]]:
    """So many machines, gone with all their processes at the end. Names are short: network devices are called so."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    addresses = {name: f"{_NETWORK}.{number}" for number, name in enumerate(names, start=1)}
    with contextlib.ExitStack() as undo:
        hosts = undo.enter_context(tempfile.NamedTemporaryFile("w"))
        hosts.writelines(f"{address} {name}\n" for name, address in addresses.items())
        hosts.write("127.0.0.1 localhost\n")
        hosts.flush()
        _ip(f"link add {_BRIDGE} type bridge")
        undo.callback(_ip, f"link del {_BRIDGE}")
        _ip(f"link set {_BRIDGE} up")
        yield [undo.enter_context(_machine(name, address, hosts.name)) for name, address in addresses.items()]


@contextlib.contextmanager
def _machine(name: str, address: str, hosts: str) -> Iterator[Machine]:
    with contextlib.ExitStack() as undo:
        _ip(f"netns add {name}")
        undo.callback(_ip, f"netns del {name}")
        _ip(f"link add {name} type veth peer name eth0 netns {name}")
        # With the namespace it would go only some time after the last process in it.
        undo.callback(_ip, f"link del {name}")
        _ip(f"link set {name} master {_BRIDGE} up")
        _ip(f"-n {name} link set lo up", f"-n {name} addr add {address}/24 dev eth0", f"-n {name} link set eth0 up")
        own = (
            f"mount -t tmpfs tmpfs /tmp/ray && mount --bind {hosts} /etc/hosts && hostname {name} && echo && sleep inf"
        )
        isolated = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        keeper = undo.enter_context(
            subprocess.Popen(["ip", "netns", "exec", name, *isolated, "bash", "-c", own], stdout=subprocess.PIPE)
        )
        undo.callback(keeper.kill)
        assert keeper.stdout is not None
        if not keeper.stdout.readline():
            raise SystemExit(f"{name} could not be made: see the messages above")
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text()
        machine = Machine(name, address, int(children.split()[0]))
        undo.callback(machine.kill)
        yield machine


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)
