"""Chunks as HDF5's LZ4 filter stores them: the filter itself reads them back."""

import zlib

import h5py
import hdf5plugin
import numpy as np
import pytest

from cache_schema.chunk import checksum, compress_chunk, decompress_chunk


def through_the_filter(chunk: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Decode a chunk with HDF5 and hdf5plugin, which know nothing of ours."""
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset(
            "x", shape, dtype, chunks=shape, compression=hdf5plugin.LZ4(), fillvalue=99
        )
        dataset.id.write_direct_chunk((0,) * len(shape), chunk)
        return dataset[:]


def decompressed(chunk: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    values = np.full(shape, 99, dtype)
    decompress_chunk(chunk, values)
    return values


@pytest.mark.parametrize("noise", [0.0, 0.02, 1.0])
def test_the_filter_reads_what_was_compressed(noise):
    generator = np.random.default_rng(0)
    values = np.where(generator.random((4, 37, 41)) < noise, generator.normal(size=(4, 37, 41)), 0)
    values = values.astype(np.float16)
    chunk = compress_chunk(values)
    np.testing.assert_array_equal(through_the_filter(chunk, values.shape, np.float16), values)
    np.testing.assert_array_equal(decompressed(chunk, values.shape, np.float16), values)


def test_what_does_not_shrink_is_stored_as_it_is():
    values = np.frombuffer(np.random.default_rng(1).bytes(1000), np.uint8).reshape(20, 50)
    chunk = compress_chunk(values)
    assert len(chunk) == 16 + 1000
    assert chunk.endswith(values.tobytes())
    np.testing.assert_array_equal(through_the_filter(chunk, (20, 50), np.uint8), values)


def test_zeros_become_next_to_nothing():
    assert len(compress_chunk(np.zeros((4, 240, 240), np.float16))) < 2500


def from_the_filter(values: np.ndarray, block_size: int = 0) -> bytes:
    """Compress a chunk with HDF5 and hdf5plugin; blocks of 0 bytes mean one for the chunk."""
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset(
            "x", data=values, chunks=values.shape, compression=hdf5plugin.LZ4(block_size)
        )
        _, chunk = dataset.id.read_direct_chunk((0,) * values.ndim)
        return chunk


@pytest.mark.parametrize("block_size", [0, 256, 599, 600])
@pytest.mark.parametrize("noise", [0, 1])
def test_what_the_filter_wrote_is_read(block_size, noise):
    values = (np.arange(600) // 7).astype(np.uint8)
    values += np.frombuffer(np.random.default_rng(2).bytes(600), np.uint8) * np.uint8(noise)
    chunk = from_the_filter(values, block_size)
    np.testing.assert_array_equal(decompressed(chunk, (600,), np.uint8), values)


def test_the_filter_itself_stores_the_same_layout():
    values = np.arange(600, dtype=np.uint8).reshape(20, 30) // 7
    assert compress_chunk(values)[:8] == from_the_filter(values)[:8]  # size of the chunk


GOOD = compress_chunk(np.arange(600, dtype=np.uint8) // 7)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (b"", "not LZ4"),
        (GOOD[:11], "not LZ4"),
        (GOOD[:14], "not LZ4"),
        (GOOD[:-1], "not LZ4"),
        (GOOD[:12], "holds 0 bytes, not 600"),
        (b"\0" * 7 + b"\1" + GOOD[8:], "holds 0 bytes, not 600"),
        (GOOD[:8] + b"\0\0\0\7" + GOOD[12:], "not LZ4"),
        (GOOD + b"\0\0\0\1x", "not LZ4|holds"),
    ],
)
def test_what_is_not_a_chunk_of_that_size_is_refused(chunk, message):
    with pytest.raises(ValueError, match=message):
        decompressed(chunk, (600,), np.uint8)


def test_the_checksum_is_that_of_zlib_and_goes_on():
    assert checksum(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC
    assert checksum(b"6789", checksum(b"12345")) == zlib.crc32(b"123456789")
