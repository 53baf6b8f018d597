"""Flags, checkpoints and run folders: what all programs stand on."""
