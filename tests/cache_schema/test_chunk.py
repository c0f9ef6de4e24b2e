"""Chunks as HDF5's LZ4 filter stores them: the filter itself reads them back."""

import zlib

import h5py
import hdf5plugin
import numpy as np
import pytest

from cache_schema.chunk import checksum, compress_chunk


def through_the_filter(chunk: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Decode a chunk with HDF5 and hdf5plugin, which know nothing of ours."""
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset(
            "x", shape, dtype, chunks=shape, compression=hdf5plugin.LZ4(), fillvalue=99
        )
        dataset.id.write_direct_chunk((0,) * len(shape), chunk)
        return dataset[:]


@pytest.mark.parametrize("noise", [0.0, 0.02, 1.0])
def test_the_filter_reads_what_was_compressed(noise):
    generator = np.random.default_rng(0)
    values = np.where(generator.random((4, 37, 41)) < noise, generator.normal(size=(4, 37, 41)), 0)
    values = values.astype(np.float16)
    found = through_the_filter(compress_chunk(values), values.shape, np.float16)
    np.testing.assert_array_equal(found, values)


def test_what_does_not_shrink_is_stored_as_it_is():
    values = np.frombuffer(np.random.default_rng(1).bytes(1000), np.uint8).reshape(20, 50)
    chunk = compress_chunk(values)
    assert len(chunk) == 16 + 1000
    assert chunk.endswith(values.tobytes())
    np.testing.assert_array_equal(through_the_filter(chunk, (20, 50), np.uint8), values)


def test_zeros_become_next_to_nothing():
    assert len(compress_chunk(np.zeros((4, 240, 240), np.float16))) < 2500


def test_the_filter_itself_stores_the_same_layout():
    values = np.arange(600, dtype=np.uint8).reshape(20, 30) // 7
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset(
            "x", data=values, chunks=values.shape, compression=hdf5plugin.LZ4()
        )
        _, theirs = dataset.id.read_direct_chunk((0, 0))
    assert compress_chunk(values)[:12] == theirs[:12]  # sizes of the chunk and of its block


def test_the_checksum_is_that_of_zlib_and_goes_on():
    assert checksum(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC
    assert checksum(b"6789", checksum(b"12345")) == zlib.crc32(b"123456789")
