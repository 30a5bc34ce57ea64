"""Object storage behind one small protocol.

Three implementations: `s3.S3Store` (Backblaze B2 and every S3-compatible server),
`directory.DirectoryStore` (a folder is a bucket) and `memory.MemoryStore`. All keys
given to a store are relative to its root prefix. `open_store(url)` picks one.
"""

from processor.store.opening import open_store
from processor.store.protocol import (
    Capabilities,
    Download,
    ObjectInfo,
    Page,
    Store,
    check_key,
    read_bytes,
)

__all__ = ["Capabilities", "Download", "ObjectInfo", "Page", "Store", "check_key", "open_store", "read_bytes"]
