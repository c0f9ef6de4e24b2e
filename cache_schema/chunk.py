"""One chunk of a dataset as HDF5's LZ4 filter (number 32004) stores it.

HDF5's own way through the filter copies every chunk twice more; a slice that has just been made is
compressed where it lies in the processor's cache. The filter still reads what is written here.
"""

import struct

import lz4.block
import numpy as np
from isal import isal_zlib
from jaxtyping import Shaped

_HEADER = struct.Struct(">QII")


def compress_chunk(values: Shaped[np.ndarray, "*grid"]) -> bytes:
    """Compress the values of one chunk.

    The layout is that of the registered filter: size of the values as a big-endian uint64, size of
    a block, which here is the whole chunk, as a uint32, then the size of the compressed block as a
    uint32 and the LZ4 block. A block that would not shrink is stored as it is.

    Args:
        values: The chunk, contiguous.

    Returns:
        Bytes for `write_direct_chunk`.
    """
    block: bytes = lz4.block.compress(values, store_size=False)
    if len(block) >= values.nbytes:
        block = values.tobytes()
    return _HEADER.pack(values.nbytes, values.nbytes, len(block)) + block


def checksum(content: bytes, start: int = 0) -> int:
    """Return the CRC-32 of bytes as gzip and PNG define it, going on from that of what came before."""
    crc: int = isal_zlib.crc32(content, start)
    return crc
