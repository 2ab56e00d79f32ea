"""The soak: runs of the job under random faults on real Ray nodes and a real S3 server, each compared with a calm run.

    python -m tests.soak --faults 1000 --seed 7        # by hand; 30 faults run with the slow tests

`faults` holds the seeded list, `wire` the proxy and what it saw, `world` the servers and drivers, `driver`, `worker`
and `absent` what they run, `cycle` one run from its first fault to its end, and `check` what must then hold.
"""
