"""An explicit-state model of the protocol: every interleaving within bounds, and what each rule prevents."""
