"""Programs that try to get out, to see, to stay, or to eat the machine; each prints ESCAPED where it succeeds.

SECRET, PORT, ABSTRACT and PARENT are replaced by a file of the host, a TCP port and an abstract socket on which the host
listens, and the trainer's process id. An attack of `QUICK` ends by itself; one of `LASTING` has to be stopped.
"""

from __future__ import annotations

_TRY = """
def tries(*actions):
    for action in actions:
        try:
            value = action()
        except BaseException:
            continue
        if value is not False:
            print("ESCAPED", repr(value)[:80])
"""

_SYSCALL = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
def call(x86, generic, *arguments):
    return libc.syscall(generic if arm else x86, *arguments) >= 0
"""

QUICK = {
    # It reads what is not its own.
    "reads a host file": "tries(lambda: open('SECRET').read())",
    "reads system files": """
import glob
tries(*[lambda p=p: open(p).read() for p in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/etc/resolv.conf')])
tries(lambda: bool(glob.glob('/home/*') + glob.glob('/root/.*ssh*') + glob.glob('/etc/*')) and glob.glob('/etc/*'))
""",
    "reads a host file through the posix module": """
import importlib, sys
del sys.modules['posix']
posix = importlib.import_module('posix')
tries(lambda: posix.read(posix.open('SECRET', 0), 100))
""",
    "reads a host file through ctypes": _SYSCALL + "tries(lambda: libc.open(b'SECRET', 0) >= 0 and 'opened')",
    "walks up from the working directory": """
import os
tries(lambda: os.open('../' * 20 + 'SECRET'.lstrip('/'), os.O_RDONLY))
""",
    "reads environments over /proc": """
import glob
for path in ['/proc/1/environ', '/proc/self/environ', '/proc/thread-self/environ', *glob.glob('/proc/*/environ')]:
    tries(lambda: open(path, 'rb').read() or False)
""",
    "reads its own environment": """
import os
known = {'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS'}
tries(lambda: sorted(set(os.environ) - known) or False)
""",
    "reads the environment the process started with": _SYSCALL + """
known = ('HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'PYTHONHASHSEED', 'PWD')
start = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')
found = []
while start and start[len(found)]:
    found.append(start[len(found)].decode())
tries(lambda: [f for f in found if f.split('=')[0] not in known] or False)
""",
    "lists processes": """
import os
tries(lambda: [name for name in os.listdir('/proc') if name.isdigit()] or False)
""",
    "looks for the gold answer in frames and objects": """
import gc, sys
frame = sys._getframe()
while frame:
    tries(lambda: ('answer' in frame.f_locals or 'gold' in frame.f_locals) and list(frame.f_locals))
    frame = frame.f_back
""",
    "reads inherited descriptors": """
import os
for number in range(3, 256):
    tries(lambda: os.pread(number, 10, 0))
    tries(lambda: os.read(number, 10) if number not in (3, 4) else False)
""",
    "writes to inherited descriptors": """
import os
for number in range(4, 256):
    tries(lambda: os.write(number, b'{"status": "ok", "text": "forged"}'))
""",
    "reads from the standard input": "tries(lambda: input(), lambda: __import__('sys').stdin.read() or False)",
    # It writes where it may not.
    "writes over a host file": """
# It may well write a file of that name of its own; the host's is looked at afterwards.
for mode in ('w', 'a', 'r+'):
    try: open('SECRET', mode).write('taken')
    except OSError: pass
""",
    "writes outside": """
import os
places = ('/', '/etc', '/usr', '/usr/lib', '/var/tmp', '/root', '/home', '/packages', '/packages/sympy', '/dev', '/proc')
tries(*[lambda p=p: open(p + '/mine', 'w') for p in places], *[lambda p=p: os.mkdir(p + '/mine') for p in places])
""",
    "deletes the Python installation": """
import os, shutil, numpy, sympy, json
for module in (numpy, sympy, json, os):
    path = module.__file__
    tries(lambda: os.remove(path), lambda: os.rename(path, path + 'x'), lambda: open(path, 'a').write('#'))
    tries(lambda: shutil.rmtree(os.path.dirname(path)), lambda: os.chmod(path, 0o777))
""",
    "goes through a symbolic link": """
import os
os.symlink('SECRET', '/tmp/link')
os.symlink('/', '/tmp/root')
tries(lambda: open('/tmp/link').read(), lambda: open('/tmp/root/etc/passwd'), lambda: os.link('SECRET', '/tmp/hard'))
tries(lambda: os.rename('/tmp/link', '/usr/link'))
try: open('/tmp/link', 'a').write('x')
except OSError: pass
""",
    "makes a device": """
import os, stat
tries(lambda: os.mknod('/tmp/device', stat.S_IFBLK | 0o666, os.makedev(254, 0)))
tries(lambda: os.mknod('/dev/device', stat.S_IFCHR | 0o666, os.makedev(1, 1)))
""",
    # It talks.
    "connects over TCP": """
import socket
tries(lambda: socket.create_connection(('127.0.0.1', PORT), 1), lambda: socket.create_connection(('1.1.1.1', 53), 1))
""",
    "connects to an abstract socket": """
import socket
tries(lambda: socket.socket(socket.AF_UNIX).connect('\\0ABSTRACT'))
""",
    "sends datagrams and looks up names": """
import socket
tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)))
tries(lambda: socket.getaddrinfo('example.com', 80), lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
tries(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), lambda: socket.socket(socket.AF_PACKET))
""",
    "opens a socket through the kernel": _SYSCALL + "tries(lambda: call(41, 198, 2, 1, 0), lambda: call(41, 198, 40, 1, 0))",
    # It starts or hurts other processes.
    "starts a shell": """
import os, subprocess
tries(lambda: os.system('true') == 0, lambda: subprocess.run(['/bin/sh', '-c', 'true']), lambda: os.popen('id').read() or False)
""",
    "finds Popen over subclasses": """
import subprocess
for found in [c for c in object.__subclasses__() if c.__name__ == 'Popen'] + [subprocess.Popen]:
    tries(lambda: found(['/bin/true']), lambda: found(['python3', '-c', '']))
""",
    "executes itself anew": """
import os, sys
tries(lambda: os.posix_spawn(sys.executable or '/usr/bin/python3', ['python'], {}))
tries(lambda: os.execv(sys.executable or '/usr/bin/python3', ['python', '-c', 'print("ESCAPED")']))
""",
    "executes a file in memory": _SYSCALL + "tries(lambda: call(319, 279, b'x', 0), lambda: call(322, 281, 0, b'', 0, 0, 0x1000))",
    "forks a bomb": """
import os
while True:
    try:
        if os.fork() == 0:
            while True: pass
    except OSError:
        break
    print('ESCAPED')
    break
""",
    "forks a daemon twice": """
import os, time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print('ESCAPED', flush=True)
            time.sleep(1000)
        os._exit(0)
except OSError:
    pass
""",
    "starts a pool of processes": """
import multiprocessing
tries(lambda: multiprocessing.Process(target=print, args=('ESCAPED',)).start())
""",
    "kills the trainer": """
import ctypes, os, signal
libc = ctypes.CDLL(None)
tries(lambda: os.kill(PARENT, signal.SIGKILL), lambda: libc.kill(PARENT, 9) == 0)
""",
    "kills its parent and its group": """
import os, signal
for action in (lambda: os.kill(os.getppid(), 9), lambda: os.killpg(0, 15), lambda: os.kill(-1, 9), lambda: os.kill(1, 9)):
    try: action()
    except OSError: pass
""",
    "traces another process": _SYSCALL + """
tries(lambda: call(101, 117, 16, PARENT, 0, 0), lambda: call(101, 117, 0, 0, 0, 0))
tries(lambda: call(310, 270, PARENT, 0, 0, 0, 0, 0), lambda: call(434, 434, PARENT, 0))
""",
    "stops the trainer": "import os, signal\ntries(lambda: os.kill(PARENT, signal.SIGSTOP), lambda: os.kill(PARENT, 0))",
    # It asks the kernel for more.
    "becomes another user": """
import os
tries(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0))
tries(lambda: os.getuid() == 0 and 'root', lambda: os.chown('/tmp', 0, 0))
""",
    "mounts": _SYSCALL + """
tries(lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0, lambda: libc.umount2(b'/proc', 2) == 0)
tries(lambda: libc.umount2(b'/tmp', 2) == 0, lambda: call(155, 41, b'/tmp', b'/tmp'), lambda: libc.chroot(b'/tmp') == 0)
tries(lambda: call(430, 430, b'tmpfs', 0), lambda: call(428, 428, -100, b'/', 1))
""",
    "makes namespaces": _SYSCALL + """
tries(*[lambda f=f: libc.unshare(f) == 0 for f in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000)])
tries(lambda: call(308, 268, 0, 0), lambda: call(56, 220, 0x10000011, 0, 0, 0, 0), lambda: call(435, 435, 0, 0))
""",
    "uses the keyring": _SYSCALL + "tries(lambda: call(248, 217, b'user', b'x', b'y', 1, -4), lambda: call(250, 219, 0, -4, 0))",
    "uses io_uring": _SYSCALL + "tries(lambda: call(425, 425, 8, ctypes.create_string_buffer(120)))",
    "uses userfaultfd, bpf and perf": _SYSCALL + """
blank = ctypes.create_string_buffer(256)
tries(lambda: call(323, 282, 0), lambda: call(321, 280, 0, blank, 100), lambda: call(298, 241, blank, 0, -1, -1, 0))
""",
    "opens files by handle, loads modules, reboots": _SYSCALL + """
blank = ctypes.create_string_buffer(256)
tries(lambda: call(303, 264, -100, b'/', blank, blank, 0), lambda: call(304, 265, 3, blank, 0))
tries(lambda: call(313, 273, 0, b'', 0), lambda: call(169, 142, 0, 0, 0, 0), lambda: call(103, 116, 3, blank, 100))
tries(lambda: libc.sethostname(b'x', 1) == 0, lambda: call(227, 112, 0, blank), lambda: call(248 - 75, 0, 0, 0, 0) and False)
""",
    "lifts its own bounds": """
import resource
for name in ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE', 'RLIMIT_NPROC'):
    kind = getattr(resource, name)
    soft, hard = resource.getrlimit(kind)
    tries(lambda: resource.setrlimit(kind, (hard + 1, hard + 1)) if hard >= 0 else False)
""",
    "keeps shared memory of the system": _SYSCALL + """
tries(lambda: call(29, 194, 12345, 4096, 0o1666), lambda: call(68, 186, 12345, 0o1666), lambda: call(64, 190, 12345, 1, 0o1666))
""",
    "hides behind 32 bits": _SYSCALL + "tries(lambda: not arm and call(0x40000000 + 41, 0, 2, 1, 0))",
    # It crashes, or breaks the reader.
    "crashes": "import ctypes\nctypes.string_at(0)\nprint('ESCAPED')",
    "aborts": "import os\nos.abort()\nprint('ESCAPED')",
    "exits under the runner": "import os\nprint('before')\nos._exit(0)",
    "closes all descriptors": "import os\nos.closerange(0, 256)",
    "prints bytes that are no text": "import os\nos.write(1, bytes(range(256)) * 4 + b'\\xff\\xfe\\xed\\xa0\\x80')",
    "prints lone surrogates and zeros": "print('\\ud800\\udfff\\x00\\x1b[2J')",
    "forges the answer": """
import os
for number in (1, 3, 4):
    try: os.write(number, b'\\xff\\xff\\xff\\xff{"status": "ok"}')
    except OSError: pass
""",
    "raises what cannot be shown": """
class Bad(Exception):
    def __str__(self): raise SystemExit('never')
raise Bad
""",
    "nests without end": "eval('(' * 5000 + ')' * 5000)",
    "makes many files": """
for number in range(100000):
    try: open(f'/tmp/{number}', 'w').close()
    except OSError: break
else: print('ESCAPED')
""",
    "fills the disk": """
import os
written = 0
try:
    for number in range(100):
        with open(f'/tmp/{number}', 'wb') as file:
            written += file.write(bytes(1 << 20))
            written += file.write(bytes(15 << 20))
except OSError: pass
tries(lambda: written > (256 << 20) and written)
""",
    "makes a sparse giant": "tries(lambda: __import__('os').truncate(open('/tmp/x', 'w').name, 1 << 40))",
    "takes memory at once": "tries(lambda: len(bytearray(8 << 30)))",
}

LASTING = {
    "takes memory in pieces": "kept = []\nwhile True: kept.append(bytearray(10 << 20))",
    "takes memory in shared mappings": """
import mmap
kept = []
while True:
    kept.append(mmap.mmap(-1, 16 << 20))
    kept[-1].write(bytes(16 << 20))
""",
    "takes memory over children": """
import os, time
children = 0
for number in range(50):
    try:
        if os.fork() == 0:
            kept = bytearray(200 << 20)
            time.sleep(1000)
    except OSError: break
    children += 1
print(children)
""",
    "recurses without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "spins": "while True: pass",
    "spins in C": "10 ** 10 ** 9",
    "spins in an expression of sympy": "import sympy\nsympy.factorint(2**1001 - 1)",
    "sleeps": "import time\ntime.sleep(10**6)",
    "sleeps and ignores signals": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try: time.sleep(1000)
    except BaseException: pass
""",
    "catches everything": """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "waits on itself": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "starts threads without end": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError: pass
""",
    "leaves a thread behind": "import threading, time\nthreading.Thread(target=lambda: [time.sleep(1) for _ in range(10**6)]).start()",
    "floods the output": "while True: print('x' * 10000)",
    "floods the output in C": "import os\nwhile True: os.write(1, b'y' * 65536)",
    "floods the runner's channel": "import os\nwhile True:\n    try: os.write(3, b'S' * 65536)\n    except OSError: break",
    "prints a huge integer": "import sys\nsys.set_int_max_str_digits(0)\nprint(10 ** (10 ** 7))",
    "matches without end": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "opens a pipe and waits": "import os\nr, w = os.pipe()\nos.read(r, 1)",
}


def program(name: str, places: dict[str, str]) -> str:
    """The code of an attack, with the host's places in it."""
    code = _TRY + {**QUICK, **LASTING}[name]
    for word, value in places.items():
        code = code.replace(word, value)
    return code
