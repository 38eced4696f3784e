"""Many clients, one model: an HTTP server that speaks OpenAI's protocol and trusts nobody."""
