"""What is counted, in Prometheus' form. Labels are routes and statuses only: nothing that a client could make up."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def named(name: str) -> str:
            return f"gpt2_{name}"

        self.requests = Counter(named("requests"), "responses", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            named("request_seconds"), "from a request to the end of its answer", registry=self.registry, buckets=SECONDS
        )
        self.first_token = Histogram(
            named("first_token_seconds"),
            "from a request to its first piece of text",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.read = Counter(named("prompt_tokens"), "tokens of prompts", registry=self.registry)
        self.written = Counter(named("generated_tokens"), "tokens written", registry=self.registry)
        self.running = Gauge(named("running"), "answers being written", registry=self.registry)
        self.waiting = Gauge(named("waiting"), "answers waiting for a place", registry=self.registry)
        self.refused = Counter(named("refused"), "requests answered with 429", registry=self.registry)
        self.cancelled = Counter(named("cancelled"), "answers given up by their clients", registry=self.registry)
        self.dropped = Counter(named("dropped"), "connections dropped", ["reason"], registry=self.registry)
        self.connections = Gauge(named("connections"), "open connections", registry=self.registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
