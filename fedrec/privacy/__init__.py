"""Plan, clipping, mechanism, accounting and ledger: everything the privacy claim rests on."""
