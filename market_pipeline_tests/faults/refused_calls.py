"""A call of the kernel that fails in this process and its children, by a filter of seccomp."""

import ctypes
import errno
import platform
import struct

FDATASYNC = {"x86_64": 75, "aarch64": 83}
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _IS_EQUAL, _RETURN = 0x20, 0x15, 0x06
_REFUSE, _ALLOW = 0x0005_0000, 0x7FFF_0000


def refuse_fdatasync() -> None:
    """Let fdatasync fail as a broken disk does; fsync goes on working."""
    number = FDATASYNC[platform.machine()]
    steps = (
        (_LOAD, 0, 0, 0),  # The number of the call.
        (_IS_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _REFUSE | errno.EIO),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, program, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no filter of seccomp")
