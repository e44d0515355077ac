"""The subcommands that the toolkit adds."""
