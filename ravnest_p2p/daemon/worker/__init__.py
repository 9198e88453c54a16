"""A child process that runs one stage, so that a crash or a hostile graph takes down only itself."""
