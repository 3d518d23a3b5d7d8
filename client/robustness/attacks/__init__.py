"""Our attacks, one file each: its config, what runs it, and the `AttackKind` that `base.ATTACKS` lists."""
