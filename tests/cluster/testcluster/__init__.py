"""A provider of a real Kubernetes cluster on one Linux machine, from package registries alone: test tooling, apart from the product."""
