"""What starts things: runs, sweeps and benchmarks. Only here are there flags."""
