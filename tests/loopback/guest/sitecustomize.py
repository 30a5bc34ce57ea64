"""What a container's host does for it on Modal, done inside the process instead.

Python imports this by name at start because the loopback puts its folder on PYTHONPATH. It holds no
Modal code and changes none but the path of a file: it only makes this machine look like a container's.
"""

import os
import socket
import struct
import sys
import warnings

# Modal's deprecations carry their date as the message's head; code under test must raise none.
warnings.filterwarnings("error", message=r"\d{4}-\d\d-\d\d: ")

# The checkout is importable here through an editable install. A container on Modal has only what was
# mounted, so that a file missing from the mount must be missing here too.
_hidden = [path for path in os.environ.get("LOOPBACK_HIDE", "").split(os.pathsep) if path]
sys.path[:] = [path for path in sys.path if os.path.realpath(path or os.curdir) not in _hidden]

if os.environ.get("MODAL_IS_REMOTE") == "1":
    import fcntl
    from typing import Any

    _ioctl: Any = fcntl.ioctl
    _GET_ADDRESS = 0x8915  # SIOCGIFADDR

    def _loopback_eth0(fd: Any, request: int, arg: Any = 0, mutate_flag: bool = True) -> Any:
        """Modal waits for web servers on eth0's address; here nothing may listen beyond 127.0.0.1."""
        if request == _GET_ADDRESS and bytes(arg).startswith(b"eth0\0"):
            return struct.pack("20s4s", b"", socket.inet_aton("127.0.0.1"))
        return _ioctl(fd, request, arg, mutate_flag)

    fcntl.ioctl = _loopback_eth0

    # Where a restored process reads what its environment is by now; a folder is its file system here.
    # Without this module loaded (a child of the container's process) there is nothing to restore.
    _manager: Any = sys.modules.get("modal._runtime.task_lifecycle_manager")
    if _manager is not None:
        _manager.SPEC_ENVIRON_PATH = os.environ["DROPBATCH_MOUNT_ROOT"] + _manager.SPEC_ENVIRON_PATH
