"""Shards to models: data, networks, federated training, evaluation, report. No dask, nibabel, h5py."""
