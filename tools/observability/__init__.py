"""The Grafana dashboards: what they show, their JSON, and pictures of their panels from the answers of a Prometheus."""
