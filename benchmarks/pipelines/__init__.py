"""Parts of `benchmarks.pipeline`: the model, and each way to train it on two cores, every one a process."""
