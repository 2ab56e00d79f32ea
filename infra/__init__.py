"""Where jobs run and where results go: object storage, the embedded cluster, the demo model, deployment files."""
