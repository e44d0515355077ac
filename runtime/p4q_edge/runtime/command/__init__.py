"""The subcommands of the runtime, one module each."""
