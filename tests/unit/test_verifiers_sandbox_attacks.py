"""Programs that try to get out of the sandbox, or to take more than their share; the witnesses stand outside.

Every program runs in the real sandbox, and leaves something behind if it succeeds: a secret in its output, a
connection, a file, a dead process. The harmless ones also run without a sandbox, where each must succeed: witnesses
that see nothing would prove nothing.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import psutil
import pytest

from still_ray.verifiers.code.bubblewrap import bubblewrap_options
from still_ray.verifiers.code.exchange import Ending
from still_ray.verifiers.code.sandbox import Run, Sandbox, SandboxLimits

MIB: Final = 1 << 20
LIMITS: Final = SandboxLimits(timeout_s=4.0, memory_mib=256, threads=8, output_mib=1, tmp_mib=8)
LONG_LIMITS: Final = replace(LIMITS, timeout_s=30.0)
"""For attacks that end by themselves, however busy the machine is."""

ON_THE_HOST: Final = ("read", "leak", "reach", "sockets", "write", "change", "kill")
"""Groups of attacks that end by themselves."""

PROBLEM: Final = Sandbox().problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"no sandbox here: {PROBLEM}")

READ_SECRET: Final = {
    "open": "print(open(SECRET).read())",
    "os.open": "import os; print(os.read(os.open(SECRET, os.O_RDONLY), 1000))",
    "ctypes open": """
        import ctypes
        libc = ctypes.CDLL(None)
        buffer = ctypes.create_string_buffer(1000)
        libc.read(libc.open(SECRET.encode(), 0), buffer, 999)
        print(buffer.value)
        """,
    "raw openat": """
        import ctypes, platform
        libc = ctypes.CDLL(None)
        number, reading = (257, 0) if platform.machine() == 'x86_64' else (56, 63)
        buffer = ctypes.create_string_buffer(1000)
        libc.syscall(reading, libc.syscall(number, -100, SECRET.encode(), 0), buffer, 999)
        print(buffer.value)
        """,
    "symlink": "import os; os.symlink(SECRET, 'link'); print(open('link').read())",
    "symlink of a folder": """
        import os
        os.symlink(os.path.dirname(SECRET), 'd')
        print(open('d/' + os.path.basename(SECRET)).read())
        """,
    "climbing": "print(open('../' * 30 + SECRET).read())",
    "file address": "import urllib.request; print(urllib.request.urlopen('file://' + SECRET).read())",
    "memory map": "import mmap; f = open(SECRET, 'rb'); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:])",
    "copy": "import shutil; shutil.copy(SECRET, 'copy'); print(open('copy').read())",
    "root of the parent": "import os; print(open(f'/proc/{os.getppid()}/root' + SECRET).read())",
    "environment": "import os; print(os.environ)",
    "environment of the parent": "import os; print(open(f'/proc/{PARENT}/environ').read())",
}
"""Each prints the secret if it can."""

LEAK_HOST: Final = {
    "hard link": "import os; os.link(SECRET, MARKERS + '/hard')",
    "link into tmp": "import os; os.link(SECRET, 'hard'); print(open('hard').read())",
    "descriptors": """
        import os
        for number in range(3, 1024):
            try:
                print('PWNED', number, os.fstat(number), os.read(number, 100))
            except OSError:
                pass
        """,
    "password file": "print('PWNED', open('/etc/passwd').read())",
    "shadow file": "print('PWNED', open('/etc/shadow').read())",
    "home folders": "import os; print('PWNED', os.listdir('/home'))",
    "this project": "import sys; sys.path.append(ROOT); import still_ray; print('PWNED', still_ray.__file__)",
    "installed packages": "import sys; sys.path += SITE; import psutil; print('PWNED', psutil.__file__)",
    "processes of the host": "import os; print('PWNED', [p for p in os.listdir('/proc') if p.isdigit()])",
    "kernel memory": "print('PWNED', open('/dev/mem', 'rb').read(10))",
    "disks": "import os; print('PWNED', [os.open('/dev/' + d, os.O_RDONLY) for d in ('sda', 'vda', 'nvme0n1')])",
    "made device": "import os, stat; os.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); print('PWNED')",
    "control groups": "import os; print('PWNED', os.listdir('/sys/fs/cgroup'))",
    "kernel settings": "print('PWNED', open('/proc/sys/kernel/core_pattern').read())",
    "handle of a file": """
        import ctypes, platform
        number = 303 if platform.machine() == 'x86_64' else 264
        handle = ctypes.create_string_buffer(b'\\x80' + bytes(200))
        mount = ctypes.c_int()
        if ctypes.CDLL(None).syscall(number, -100, b'/tmp', handle, ctypes.byref(mount), 0) == 0:
            print('PWNED')
        """,
}
"""Each prints PWNED, or leaves a file, if it can."""

REACH_OUT: Final = {
    "tcp": "import socket; socket.create_connection(ADDRESS, timeout=1)",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', UDP)",
    "unix": "import socket; socket.socket(socket.AF_UNIX).connect(UNIX)",
    "abstract unix": "import socket; socket.socket(socket.AF_UNIX).connect(chr(0) + ABSTRACT)",
    "http": "import urllib.request; urllib.request.urlopen('http://%s:%d/' % ADDRESS, timeout=1)",
    "raw system call": """
        import ctypes, platform, socket, struct
        libc = ctypes.CDLL(None)
        number = 41 if platform.machine() == 'x86_64' else 198
        address = struct.pack('=HH4s8x', 2, socket.htons(ADDRESS[1]), socket.inet_aton(ADDRESS[0]))
        libc.connect(libc.syscall(number, 2, 1, 0), address, 16)
        """,
    "asyncio": "import asyncio; asyncio.run(asyncio.wait_for(asyncio.open_connection(*ADDRESS), 1))",
    "subprocess": """
        import subprocess
        subprocess.run([EXE, '-c', 'import socket; socket.create_connection(%r)' % (ADDRESS,)])
        """,
}
"""Each makes a connection or sends a datagram if it can."""

MORE_SOCKETS: Final = {
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('PWNED')",
    "packets": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); print('PWNED')",
    "names": "import socket; print('PWNED', socket.getaddrinfo('localhost', 80), socket.socket())",
    "io_uring": """
        import ctypes
        if ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0:
            print('PWNED')
        """,
    "bpf": "import ctypes; c = ctypes.CDLL(None).syscall(321, 0, bytes(120), 120); print('PWNED' if c >= 0 else '')",
}

WRITE_OUT: Final = {
    "file": "open(MARKERS + '/written', 'w').write('x')",
    "folder": "import os; os.mkdir(MARKERS + '/made')",
    "symlink": "import os; os.symlink(MARKERS, 'm'); open('m/through', 'w').write('x')",
    "rename": "import os; open('f', 'w').write('x'); import shutil; shutil.move('f', MARKERS + '/moved')",
    "subprocess": "import subprocess; subprocess.run([EXE, '-c', 'open(%r, \"w\")' % (MARKERS + '/spawned')])",
    "shell": "import os; os.system('touch ' + MARKERS + '/shell')",
    "fork": """
        import os
        if os.fork() == 0:
            open(MARKERS + '/forked', 'w')
            os._exit(0)
        os.wait()
        """,
    "posix_spawn": """
        import os
        os.waitpid(os.posix_spawn(EXE, [EXE, '-c', 'open(%r, "w")' % (MARKERS + '/spawned')], {}), 0)
        """,
    "multiprocessing": """
        import multiprocessing
        process = multiprocessing.get_context('fork').Process(target=open, args=(MARKERS + '/child', 'w'))
        process.start()
        process.join()
        """,
    "ctypes system": "import ctypes; ctypes.CDLL(None).system(('touch ' + MARKERS + '/libc').encode())",
    "daemon": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.3)
                open(MARKERS + '/daemon', 'w')
            os._exit(0)
        os.wait()
        """,
    "at exit": "import atexit; atexit.register(lambda: open(MARKERS + '/late', 'w'))",
    "thread that outlives": """
        import threading, time
        threading.Thread(target=lambda: (time.sleep(0.2), open(MARKERS + '/thread', 'w'))).start()
        """,
    "exec": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo > ' + MARKERS + '/exec'])",
    "database": "import sqlite3; sqlite3.connect(MARKERS + '/base').execute('create table t (x)')",
}
"""Each leaves a file on the host if it can."""

CHANGE_SANDBOX: Final = {
    "interpreter": "import sys; open(sys.executable, 'ab').write(b'x'); print('PWNED')",
    "standard library": "import os; open(os.path.dirname(os.__file__) + '/json/evil.py', 'w'); print('PWNED')",
    "removed module": "import os; os.unlink(os.__file__); print('PWNED')",
    "renamed library": "import os; d = os.path.dirname(os.__file__); os.rename(d, d + 'x'); print('PWNED')",
    "modes": "import os; os.chmod(os.__file__, 0o777); print('PWNED')",
    "times": "import os; os.utime(os.__file__, (0, 0)); print('PWNED')",
    "root folder": "open('/evil', 'w'); print('PWNED')",
    "devices": "open('/dev/evil', 'w'); print('PWNED')",
    "shared memory": "open('/dev/shm/evil', 'wb').write(bytes(1 << 20)); print('PWNED')",
    "mount": """
        import ctypes
        if ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0:
            print('PWNED')
        """,
    "chroot": "import os; os.chroot('/tmp'); print('PWNED')",
    "new user namespace": "import ctypes; print('PWNED' if ctypes.CDLL(None).unshare(0x10000000) == 0 else '')",
    "new mount namespace": "import ctypes; print('PWNED' if ctypes.CDLL(None).unshare(0x00020000) == 0 else '')",
    "root again": "import os; os.setresuid(0, 0, 0); print('PWNED')",
    "groups again": "import os; os.setgroups([0]); print('PWNED')",
    "capabilities": """
        import ctypes, struct
        header, data = struct.pack('=II', 0x20080522, 0), struct.pack('=IIIIII', *[0xffffffff] * 6)
        print('PWNED' if ctypes.CDLL(None).capset(header, data) == 0 else '')
        """,
    "limits": """
        import resource
        for name in ('AS', 'NPROC', 'FSIZE', 'NOFILE'):
            number = getattr(resource, 'RLIMIT_' + name)
            resource.setrlimit(number, (resource.RLIM_INFINITY,) * 2)
            print('PWNED', name)
        """,
    "priority": "import os; os.nice(-10); print('PWNED')",
    "keyring": "import ctypes; print('PWNED' if ctypes.CDLL(None).syscall(250, 0, -3, 1, 0, 0) > 0 else '')",
    "raw clone": """
        import ctypes, os, platform
        number = 56 if platform.machine() == 'x86_64' else 220
        found = ctypes.CDLL(None).syscall(number, 17, 0, 0, 0, 0)
        if found == 0:
            os._exit(0)
        print('PWNED' if found > 0 else '')
        """,
    "raw clone3": """
        import ctypes, os, struct
        found = ctypes.CDLL(None).syscall(435, struct.pack('=11Q', 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)
        if found == 0:
            os._exit(0)
        print('PWNED' if found > 0 else '')
        """,
    "raw vfork": """
        import ctypes, platform
        if platform.machine() == 'x86_64':
            print('PWNED' if ctypes.CDLL(None).syscall(58) > 0 else '')
        """,
    "32-bit system call": """
        import ctypes, mmap
        code = bytes.fromhex('b802000000cd80c3')  # mov eax, 2; int 0x80; ret: fork by the other ABI
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(code)
        found = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        print('PWNED' if found >= 0 else '')
        """,
}
"""Each prints PWNED if it can. They are not tried without a sandbox: they would harm the machine."""

KILL: Final = {
    "parent": "import os, signal; os.kill(PARENT, signal.SIGKILL)",
    "victim": "import os, signal; os.kill(VICTIM, signal.SIGKILL)",
    "own parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "everybody": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "group": "import os, signal; os.killpg(0, signal.SIGKILL)",
    "raw kill": """
        import ctypes, platform
        x86 = platform.machine() == 'x86_64'
        for pid in (VICTIM, PARENT):
            ctypes.CDLL(None).syscall(62 if x86 else 129, pid, 9)
            ctypes.CDLL(None).syscall(200 if x86 else 130, pid, 9)
        """,
    "by descriptor": """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.syscall(424, libc.syscall(434, VICTIM, 0), 9, None, 0)
        """,
    "trace": """
        import ctypes
        if ctypes.CDLL(None).ptrace(16, VICTIM, None, None) == 0:
            print('PWNED')
        """,
    "read memory": """
        import ctypes, platform
        number = 310 if platform.machine() == 'x86_64' else 270
        buffer = ctypes.create_string_buffer(8)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
        if ctypes.CDLL(None).syscall(number, VICTIM, vector, 1, vector, 1, 0) > 0:
            print('PWNED')
        """,
    "limits of others": """
        import resource
        resource.prlimit(VICTIM, resource.RLIMIT_CPU, (0, 0))
        """,
}
"""Each kills or opens a process of the host if it can."""

TAKE_MUCH: Final = {
    "memory": "x = bytearray(10 << 30); print('TOOK', 10 << 10)",
    "memory in pieces": """
        taken = []
        try:
            while True:
                taken.append(bytearray(1 << 20))
        except MemoryError:
            print('TOOK', len(taken))
        """,
    "shared memory": """
        import mmap
        taken = []
        try:
            while len(taken) < 1000:
                taken.append(mmap.mmap(-1, 1 << 20))
                taken[-1].write(bytes(1 << 20))
        except (OSError, MemoryError):
            pass
        print('TOOK', len(taken))
        """,
    "memory files": """
        import os
        taken = 0
        try:
            while taken < 1000:
                file = os.memfd_create(str(taken))
                os.write(file, bytes(1 << 20))
                taken += 1
        except OSError:
            pass
        print('TOOK', taken)
        """,
    "system v memory": """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.shmat.restype = ctypes.c_void_p
        taken = 0
        while taken < 1000:
            segment = libc.shmget(0, 1 << 20, 0o1600)
            if segment < 0:
                break
            ctypes.memset(libc.shmat(segment, None, 0), 1, 1 << 20)
            taken += 1
        print('TOOK', taken)
        """,
    "disk": """
        taken = 0
        try:
            while taken < 1000:
                open(f'f{taken}', 'wb').write(bytes(1 << 20))
                taken += 1
        except OSError:
            pass
        print('TOOK', taken)
        """,
    "one big file": """
        import os
        file, taken = os.open('big', os.O_CREAT | os.O_WRONLY), 0
        try:
            while taken < 1000:
                os.write(file, bytes(1 << 20))
                taken += 1
        except OSError:
            pass
        print('TOOK', taken)
        """,
    "reserved disk": """
        import os
        os.posix_fallocate(os.open('big', os.O_CREAT | os.O_RDWR), 0, 1 << 36)
        print('TOOK', 1 << 16)
        """,
    "unlinked files": """
        import os
        taken = 0
        try:
            while taken < 1000:
                file = os.open('f', os.O_CREAT | os.O_WRONLY)
                os.unlink('f')
                os.write(file, bytes(1 << 20))
                taken += 1
        except OSError:
            pass
        print('TOOK', taken)
        """,
    "pipes": """
        import fcntl, os
        taken = 0
        try:
            while taken < 1000:
                end = os.pipe()[1]
                fcntl.fcntl(end, 1031, 1 << 20)
                os.set_blocking(end, False)
                taken += os.write(end, bytes(1 << 20)) >> 20
        except OSError:
            pass
        print('TOOK', taken)
        """,
    "attributes": """
        import os
        taken = 0
        try:
            while taken < 1000:
                open(f'f{taken}', 'w').close()
                os.setxattr(f'f{taken}', 'user.x', bytes(60000))
                taken += 1
        except OSError:
            pass
        print('TOOK', taken)
        """,
}
"""Each prints how many MiB it took; more than the memory and the disk that are allowed is too much."""

HANG: Final = {
    "sleep": "import time; time.sleep(1000)",
    "loop": "while True: pass",
    "loop that ignores signals": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        while True:
            pass
        """,
    "closed output": "import os, time; os.close(1); os.close(2); time.sleep(1000)",
    "big power": "x = 9 ** 9 ** 9 ** 9",
    "regular expression": "import re; re.match('(a*)*b', 'a' * 40)",
    "libc": "import ctypes; ctypes.CDLL(None).pause()",
    "deadlock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
    "input of its own": "import os; r, w = os.pipe(); os.dup2(r, 0); input()",
}
"""Each never ends; what it costs is its time limit."""

FLOOD: Final = {
    "stdout": "while True: print('x' * 10000)",
    "stderr": "import sys\nwhile True: sys.stderr.write('x' * 10000)",
    "raw": "import os\nwhile True: os.write(1, bytes(1 << 16))",
    "both": "import os\nwhile True:\n    os.write(1, b'x' * 999)\n    os.write(2, b'x' * 999)",
}
"""Each prints without end; it is killed at the limit."""

MULTIPLY: Final = {
    "fork bomb": """
        import os
        count = 0
        try:
            while count < 200:
                if os.fork() == 0:
                    import time
                    time.sleep(1000)
                count += 1
        except OSError:
            pass
        print('COUNT', count)
        """,
    "thread bomb": """
        import threading
        threading.stack_size(65536)
        stop, count = threading.Event(), 0
        try:
            while count < 200:
                threading.Thread(target=stop.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            pass
        print('COUNT', count)
        """,
    "raw thread bomb": """
        import _thread, time
        count = 0
        try:
            while count < 200:
                _thread.start_new_thread(time.sleep, (1000,))
                count += 1
        except RuntimeError:
            pass
        print('COUNT', count)
        """,
    "descriptors": """
        import os
        count = 0
        try:
            while count < 200:
                os.open('/dev/null', os.O_RDONLY)
                count += 1
        except OSError:
            pass
        print('COUNT', count)
        """,
}
"""Each prints how many it made; the limits are far below 200."""

BREAK: Final = {
    "recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): return f()\nf()",
    "nested parentheses": "eval('(' * 100000 + ')' * 100000)",
    "nested lists": "x = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x)",
    "null pointer": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "status of a kill": "import os; os._exit(137)",
    "status of a timeout": "import os; os._exit(152)",
    "raised signal": "import signal; signal.raise_signal(signal.SIGKILL)",
    "no program": "def (",
    "null character": "print(1)\x00",
}
"""Each crashes; nothing but the program itself notices."""


@dataclass(kw_only=True)
class World:
    """What a program would reach if it could, and who watches.

    Attributes:
        values: What the programs call by name.
        secret: Stands in a file, and in the environment of this process.
        contacts: One for each connection and datagram.
    """

    root: Path
    secret: str
    values: dict[str, object] = field(default_factory=dict)
    contacts: list[str] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    victim: subprocess.Popen[bytes] | None = None

    @property
    def markers(self) -> list[str]:
        return sorted(path.name for path in (self.root / "markers").iterdir())

    def program(self, text: str) -> str:
        names = "".join(f"{name} = {value!r}\n" for name, value in self.values.items())
        return names + textwrap.dedent(text)

    def listen(self, server: socket.socket) -> None:
        self.sockets.append(server)
        thread = threading.Thread(target=self._watch, args=(server,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _watch(self, server: socket.socket) -> None:
        try:
            while True:
                if server.type == socket.SOCK_STREAM:
                    connection, _ = server.accept()
                    connection.close()
                else:
                    server.recv(100)
                self.contacts.append(str(server.family))
        except OSError:  # closed: the tests are over
            return


def make_world(secret: str) -> World:
    root = Path(tempfile.mkdtemp(prefix="still-ray-attacks-"))  # not pytest's folder: nobody may enter that one
    root.chmod(0o755)
    (root / "markers").mkdir()
    (root / "markers").chmod(0o777)
    (root / "secret").write_text(secret, encoding="ascii")
    world = World(root=root, secret=secret)
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    unix.bind(str(root / "unix"))
    (root / "unix").chmod(0o777)
    abstract.bind("\0" + root.name)
    for server in (unix, abstract):
        server.listen()
    for server in (tcp, udp, unix, abstract):
        world.listen(server)
    world.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    world.values = {
        "SECRET": str(root / "secret"),
        "MARKERS": str(root / "markers"),
        "ADDRESS": tcp.getsockname(),
        "UDP": udp.getsockname(),
        "UNIX": str(root / "unix"),
        "ABSTRACT": root.name,
        "PARENT": os.getpid(),
        "VICTIM": world.victim.pid,
        "EXE": str(Path(sys.executable).resolve()),
        "ROOT": str(Path(__file__).parents[2]),
        "SITE": [path for path in sys.path if "site-packages" in path],
    }
    return world


def end_world(world: World) -> None:
    for server in world.sockets:
        server.shutdown(socket.SHUT_RDWR) if server.type == socket.SOCK_STREAM else None
        server.close()
    assert world.victim is not None
    world.victim.kill()
    world.victim.wait()
    shutil.rmtree(world.root)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    secret = f"secret-{secrets.token_hex(16)}"
    os.environ["STILL_RAY_TEST_SECRET"] = secret
    world = make_world(secret)
    try:
        yield world
    finally:
        end_world(world)
        del os.environ["STILL_RAY_TEST_SECRET"]


GROUPS: Final = {
    "read": READ_SECRET,
    "leak": LEAK_HOST,
    "reach": REACH_OUT,
    "sockets": MORE_SOCKETS,
    "write": WRITE_OUT,
    "change": CHANGE_SANDBOX,
    "kill": KILL,
    "take": TAKE_MUCH,
    "hang": HANG,
    "flood": FLOOD,
    "multiply": MULTIPLY,
    "break": BREAK,
}
ATTACKS: Final = {f"{group}: {name}": text for group, texts in GROUPS.items() for name, text in texts.items()}


def named(*groups: str) -> list[str]:
    return [name for name in ATTACKS if name.split(":")[0] in groups]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    run: Run
    elapsed_s: float


@pytest.fixture(scope="module")
def outcomes(world: World) -> dict[str, Outcome]:
    """Every attack, several at a time."""
    sandbox = Sandbox()
    assert sandbox.problem() is None

    def outcome(name: str) -> tuple[str, Outcome]:
        start = time.monotonic()
        limits = LONG_LIMITS if name.split(":", maxsplit=1)[0] in ON_THE_HOST else LIMITS
        run = sandbox.run(world.program(ATTACKS[name]), b"", limits)
        return name, Outcome(run=run, elapsed_s=time.monotonic() - start)

    with ThreadPoolExecutor(max_workers=5) as threads:
        return dict(threads.map(outcome, ATTACKS))


def printed(run: Run) -> str:
    return (run.stdout + run.stderr).decode(errors="replace")


def number(run: Run, word: str) -> int:
    match = re.search(rf"^{word} (\d+)$", run.stdout.decode(errors="replace"), re.MULTILINE)
    return int(match[1]) if match else 0


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 100
    assert all(ATTACKS.values())


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_runs_in_the_sandbox_and_gets_nothing(name: str, world: World, outcomes: dict[str, Outcome]) -> None:
    run = outcomes[name].run
    assert run.started, run.stderr
    assert world.secret not in printed(run)
    assert "PWNED" not in run.stdout.decode(errors="replace")


@pytest.mark.parametrize("name", named(*ON_THE_HOST))
def test_attack_on_the_host_ends_by_itself(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name].run.ending is Ending.DONE


def test_no_attack_leaves_anything_outside(world: World, outcomes: dict[str, Outcome]) -> None:
    time.sleep(0.5)  # a daemon would have written by now
    assert outcomes
    assert world.contacts == []
    assert world.markers == []
    assert world.victim is not None
    assert world.victim.poll() is None
    assert (world.root / "secret").read_text(encoding="ascii") == world.secret
    assert (world.root / "secret").stat().st_nlink == 1
    assert [child for child in psutil.Process().children(recursive=True) if "bwrap" in child.name()] == []


@pytest.mark.parametrize("name", named("take"))
def test_no_attack_takes_more_than_its_share(name: str, outcomes: dict[str, Outcome]) -> None:
    run = outcomes[name].run
    disk = name in ("take: disk", "take: one big file", "take: reserved disk", "take: unlinked files")
    assert number(run, "TOOK") <= (LIMITS.tmp_mib if disk else LIMITS.memory_mib)
    assert run.ending in (Ending.DONE, Ending.TIMEOUT)


@pytest.mark.parametrize("name", named("hang"))
def test_attack_that_hangs_costs_its_time_limit(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert outcome.run.ending is Ending.TIMEOUT
    assert LIMITS.timeout_s <= outcome.elapsed_s < LIMITS.timeout_s + 6.0


@pytest.mark.parametrize("name", named("flood"))
def test_flood_is_cut_off(name: str, outcomes: dict[str, Outcome]) -> None:
    run = outcomes[name].run
    assert run.ending is Ending.OVERFLOW
    assert len(run.stdout) + len(run.stderr) <= (LIMITS.output_mib + 1) * MIB


@pytest.mark.parametrize("name", named("multiply"))
def test_nothing_multiplies(name: str, outcomes: dict[str, Outcome]) -> None:
    run = outcomes[name].run
    most = {"fork bomb": 0, "descriptors": LIMITS.open_files}.get(name.removeprefix("multiply: "), LIMITS.threads)
    assert run.ending is Ending.DONE
    assert number(run, "COUNT") <= most
    assert "COUNT" in run.stdout.decode()


@pytest.mark.parametrize("name", named("break"))
def test_crash_is_a_failure_of_the_program_and_no_kill(name: str, outcomes: dict[str, Outcome]) -> None:
    run = outcomes[name].run
    assert run.ending is Ending.DONE or name == "break: recursion"
    assert run.status not in (0, 128 + signal.SIGKILL, 128 + signal.SIGXCPU)


def test_namespaces_hold_where_the_system_call_filter_is_left_out(world: World) -> None:
    bare = Sandbox(command=["bwrap", *bubblewrap_options(LIMITS.tmp_mib * MIB), "--"])
    assert "a process can be started" in str(bare.problem())
    names = [name for name in named("read", "reach", "write", "kill") if name != "kill: everybody"]
    with ThreadPoolExecutor(max_workers=5) as threads:
        runs = list(threads.map(lambda name: bare.run(world.program(ATTACKS[name]), b"", LIMITS), names))
    time.sleep(0.5)
    assert all(run.started and world.secret not in printed(run) for run in runs)
    assert (world.contacts, world.markers) == ([], [])
    assert world.victim is not None
    assert world.victim.poll() is None


HARMLESS: Final = [
    *[name for name in named("read") if "of the parent" not in name],  # what a process started with, and root's own
    *named("reach", "write"),
    *("leak: hard link", "leak: this project", "leak: installed packages", "leak: processes of the host"),
    *("kill: victim", "kill: raw kill", "kill: by descriptor"),
    *("multiply: thread bomb", "multiply: descriptors"),
]


def unsandboxed(world: World, name: str) -> subprocess.CompletedProcess[str]:
    """The program as it is, on the host; "raw kill" spares this process."""
    program = world.program(ATTACKS[name]).replace("(VICTIM, PARENT)", "(VICTIM,)")
    folder = world.root / "cwd"
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )


def is_breached(world: World, done: subprocess.CompletedProcess[str]) -> bool:
    """Whether any witness saw the attack succeed."""
    seen: list[Callable[[], object]] = [
        lambda: world.secret in done.stdout,
        lambda: "PWNED" in done.stdout,
        lambda: "COUNT 200" in done.stdout,
        lambda: world.contacts,
        lambda: world.markers,
        lambda: world.victim is not None and world.victim.poll() is not None,
    ]
    deadline = time.monotonic() + 3.0
    while not any(look() for look in seen):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("name", HARMLESS)
def test_control_the_same_attack_succeeds_without_the_sandbox(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"secret-{secrets.token_hex(16)}"
    monkeypatch.setenv("STILL_RAY_TEST_SECRET", secret)
    world = make_world(secret)
    try:
        done = unsandboxed(world, name)
        assert is_breached(world, done), done
    finally:
        end_world(world)
