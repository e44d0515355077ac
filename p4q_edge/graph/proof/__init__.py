"""Whether an exported graph computes what its module computes: exact checks, and the noise of rounding."""
