"""Write the chart's dashboards: `python tools/dashboards.py`. Their panels and queries are in `observability/`."""

from observability import dashboards

if __name__ == "__main__":
    dashboards.write()
