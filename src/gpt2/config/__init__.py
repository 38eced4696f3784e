"""Settings: their schema, their presets, and how defaults, a TOML file and the command line become one of them."""
