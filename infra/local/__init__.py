"""The embedded cluster: an S3 server (SeaweedFS) and a one-node Ray, on loopback, for one machine and one user.

evenhand local up
eval "$(evenhand local env)"         # point this shell's AWS and Ray clients at it
evenhand local down                  # stops both; the store's data stays
"""

from infra.local.cluster import ClusterStatus, LocalCluster, down, status, up, wipe
from infra.local.errors import LocalError

__all__ = ["ClusterStatus", "LocalCluster", "LocalError", "down", "status", "up", "wipe"]
