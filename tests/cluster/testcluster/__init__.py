"""Runs a real Kubernetes cluster on one Linux machine, from package registries alone: test tooling, independent of the product."""
