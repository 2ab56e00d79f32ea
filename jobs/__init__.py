"""What runs on Ray: configuration, shards, workers, the debias, audit and report jobs, and the command line.

`jobs` may import `infra`, `manifests` and `time_ops`; none of them imports `jobs`.
"""
