"""The tables and figures of README and docs, made from result files."""
