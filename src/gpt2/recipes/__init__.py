"""Where the parts are joined: each recipe reads like a script of one command."""
