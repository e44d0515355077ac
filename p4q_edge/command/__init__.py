"""The toolkit's subcommands of `p4q-edge`, found through the entry-point group ``p4q_edge.commands``."""
