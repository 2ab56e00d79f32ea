"""What runs on Ray: configuration, shards, workers, the four jobs (debias, audit, evaluate, export), the command line.

`jobs` may import `infra`, `manifests` and `time_ops`; none of them imports `jobs`.
"""
