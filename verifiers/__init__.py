"""Verifiers that run a program or ask another package, each in a process of its own."""
