"""What wires the stages: training, evaluation, compression, benchmarks. Each module may import any stage."""
