"""What R1 does before and after RL: SFT, rejection sampling, a reward model. Each is a program."""
