"""The subcommands of `timm-p2be`, one file each: `declare` adds the flags to a parser and returns what runs on them."""
