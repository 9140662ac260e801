"""Many devices at once: problems are shared out by what tuning them is expected to gain, and each
is compared on one device only. `local` has this machine's GPUs, `cluster` those of a Ray
cluster."""
