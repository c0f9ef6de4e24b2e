"""One chunk of a dataset as HDF5's LZ4 filter (number 32004) stores it.

HDF5's own way through the filter copies every chunk twice more and takes fresh memory each time, which
the system has to clear: reading a slice takes it several times longer. The filter reads what is
written here, and what the filter writes is read here.
"""

import struct

import cramjam
import numpy as np
from isal import isal_zlib
from jaxtyping import Shaped

_SIZES = struct.Struct(">QI")
_BLOCK = struct.Struct(">I")


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
    flat = _flat_bytes(values)
    block = bytes(cramjam.lz4.compress_block(flat, store_size=False))
    if len(block) >= len(flat):
        block = bytes(flat)
    return _SIZES.pack(len(flat), len(flat)) + _BLOCK.pack(len(block)) + block


def decompress_chunk(chunk: bytes, values: Shaped[np.ndarray, "*grid"]) -> None:
    """Decompress one chunk into an array.

    Args:
        chunk: As it is stored.
        values: What to fill, contiguous.

    Raises:
        ValueError: If the chunk does not hold just so many bytes.
    """
    flat, rest, start = _flat_bytes(values), memoryview(chunk), 0
    try:
        size, block_size = _SIZES.unpack_from(rest)
        rest = rest[_SIZES.size :]
        while rest and size == len(flat):
            (length,) = _BLOCK.unpack_from(rest)
            block, rest = rest[_BLOCK.size :][:length], rest[_BLOCK.size + length :]
            start += _decompress_block(block, flat[start : start + block_size])
    except (struct.error, cramjam.DecompressionError) as error:
        raise ValueError(f"chunk is not LZ4 ({error})") from error
    if start != len(flat):
        raise ValueError(f"chunk holds {start} bytes, not {len(flat)}")


def _flat_bytes(values: Shaped[np.ndarray, "*grid"]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _decompress_block(block: memoryview, target: memoryview) -> int:
    if len(block) == len(target):
        target[:] = block
        return len(target)
    num_bytes: int = cramjam.lz4.decompress_block_into(block, target, output_len=len(target))
    return num_bytes


def checksum(content: bytes, start: int = 0) -> int:
    """Return the CRC-32 of bytes as gzip and PNG define it, going on from that of what came before."""
    crc: int = isal_zlib.crc32(content, start)
    return crc
