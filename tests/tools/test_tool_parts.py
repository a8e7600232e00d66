"""The parts of the Python tool that need no sandbox: the filter, messages, captured output, special strings."""

import errno
import os
import struct
import threading
import time

import pytest

from grpo_jax.tools import frames, groups, syscalls
from grpo_jax.tools.capture import Capture
from grpo_jax.tools.filters import program_filter
from grpo_jax.tools.neutral import neutralise, special_strings

MACHINES = list(syscalls.ARCHITECTURES)


def verdict(machine, name, *arguments, processes=False, architecture=None, number=None):
    """What the filter answers: "allow", "kill", or the error's name; a machine for its few instructions."""
    numbers = syscalls.numbers(syscalls.ALLOWED, machine) | syscalls.numbers(syscalls.JUDGED, machine)
    number = numbers[name] if number is None else number
    architecture = syscalls.ARCHITECTURES[architecture or machine]
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *values)
    code = list(struct.iter_unpack("=HBBI", program_filter(machine, processes=processes)))
    place, held = 0, 0
    while True:
        operation, yes, no, constant = code[place]
        place += 1
        if operation == 0x20:
            (held,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x06:
            kind = constant & 0xFFFF0000
            return {0x7FFF0000: "allow", 0x80000000: "kill"}.get(kind) or errno.errorcode[constant & 0xFFFF]
        else:
            holds = {0x15: held == constant, 0x35: held >= constant, 0x45: bool(held & constant)}[operation]
            place += yes if holds else no


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter(machine):
    assert {verdict(machine, name) for name in syscalls.numbers(syscalls.ALLOWED, machine)} == {"allow"}
    thread, fork, namespace = 0x003D0F00, 0x01200011, 0x10000011
    assert verdict(machine, "clone", thread) == "allow"
    assert verdict(machine, "clone", fork) == "EAGAIN"
    assert verdict(machine, "clone", fork, processes=True) == "allow"
    assert verdict(machine, "clone", namespace, processes=True) == "EPERM"
    assert verdict(machine, "clone", thread | 0x40000000) == "EPERM"
    assert verdict(machine, "clone3") == "ENOSYS"
    assert verdict(machine, "socketpair", 1) == "allow"
    assert verdict(machine, "socketpair", 2) == "EPERM"
    assert verdict(machine, "prctl", 15) == "allow"
    assert verdict(machine, "prctl", 1) == "EPERM"
    assert verdict(machine, "ioctl", 1, 0x5401) == "allow"
    assert verdict(machine, "ioctl", 1, 0x5412) == "EPERM"  # TIOCSTI
    other = MACHINES[1 - MACHINES.index(machine)]
    assert verdict(machine, "read", architecture=other) == "kill"


def test_the_filter_refuses_what_is_not_listed():
    forbidden = {"socket": 41, "execve": 59, "ptrace": 101, "mount": 165, "unshare": 272, "keyctl": 250, "bpf": 321}
    forbidden |= {"io_uring_setup": 425, "userfaultfd": 323, "setuid": 105, "memfd_create": 319, "shmget": 29}
    assert {verdict("x86_64", name, number=number) for name, number in forbidden.items()} == {"EPERM"}
    assert verdict("x86_64", "", number=0x40000000) == "EPERM"  # read, of the x32 interface
    assert verdict("x86_64", "", number=5000) == "EPERM"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are of x86-64")
def test_numbers_are_those_of_this_machine():
    """A call by its number does what its name says."""
    import ctypes

    numbers = syscalls.numbers(syscalls.ALLOWED, "x86_64")
    libc = ctypes.CDLL(None)
    assert libc.syscall(numbers["getpid"]) == os.getpid()
    assert libc.syscall(numbers["getuid"]) == os.getuid()
    assert libc.syscall(numbers["gettid"]) == threading.get_native_id()
    assert len(set(numbers.values())) == len(numbers)


def test_messages_travel():
    reader, writer = os.pipe()
    message = {"text": "é\ud800\x00" * 40000, "n": 1}
    thread = threading.Thread(target=frames.send, args=(writer, message))
    thread.start()
    assert frames.receive(reader) == message
    thread.join()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "ended"),
        (b"\x05\x00", "ended"),
        (struct.pack("=I", 4) + b"{1:}", "no JSON"),
        (b"\xff\xff\xff\xff", "4294967295 bytes"),
        (struct.pack("=I", 2) + b"\xff\xfe", "no JSON"),
    ],
)
def test_what_is_no_message(content, problem):
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with pytest.raises(frames.Broken, match=problem):
        frames.receive(reader)


def test_messages_have_their_time():
    reader, writer = os.pipe()
    started = time.monotonic()
    with pytest.raises(frames.Broken, match="in time"):
        frames.receive(reader, end=started + 0.1)
    with pytest.raises(frames.Broken, match="in time"):
        frames.send(writer, "x" * 1_000_000, end=started + 0.2)  # nobody reads
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_output_is_kept_at_both_ends(pieces):
    data = bytes(range(65, 91)) * 40
    capture = Capture(101)
    for start in range(0, len(data), pieces):
        capture.add(data[start : start + pieces])
    assert (capture.size, capture.cut) == (len(data), True)
    assert capture.text() == data[:50].decode() + "\n...\n" + data[-51:].decode()


def test_output_that_fits_is_whole():
    capture = Capture(10)
    for byte in "héllo wö".encode():
        capture.add(bytes([byte]))
    assert not capture.cut
    assert capture.text() == "héllo wö"
    capture.add(b"\xff")
    assert capture.cut


def test_bytes_that_are_no_text():
    capture = Capture(10)
    capture.add(b"a\xff\xed\xa0\x80b")
    assert capture.text() == "a\ufffd\ufffd\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("text", "special", "expected"),
    [
        ("<|im_end|>", ["<|im_end|>"], "< |im_end|>"),
        ("a</s>b</s>", ["</s>", "<s>"], "a< /s>b< /s>"),
        ("```output", ["```"], "` ``output"),
        ("plain < text", ["<s>"], "plain < text"),
        ("  spaces  ", ["  ", "\n"], "  spaces  "),  # runs of blanks are tokens of some tokenizers
        ("x\x1b[2J\x00\r\ny\tz", [], "x\ufffd[2J\ufffd\ny\tz"),
        ("a@b", ["@"], "a\ufffdb"),
    ],
)
def test_special_strings_are_broken(text, special, expected):
    assert neutralise(text, special) == expected


@pytest.mark.parametrize("special", [["<s>", "< s>"], ["aa", "a a"], ["<|a|>", "< |a|>", "<| a|>"], ["((", "( ("]])
def test_no_special_string_is_left(special):
    for text in ("".join(special), special[0] * 5, " ".join(special), special[0][0] * 9):
        assert not [word for word in special if word in neutralise(text, special)]


def test_special_strings_of_a_tokenizer():
    class Tokenizer:
        all_special_tokens = ("<s>", "</s>")

        def get_added_vocab(self):
            return {"<think>": 5, "</s>": 2}

    assert special_strings(Tokenizer()) == ["</s>", "<s>", "<think>"]


def test_groups_are_removed():
    group = groups.make_group()
    folders = list(group._folders)
    if not folders:
        pytest.skip("no control group can be made here")
    group.bound(memory=1 << 30, tasks=10)
    assert group.kills() == 0
    group.close()
    assert not [folder for folder in folders if folder.exists()]
