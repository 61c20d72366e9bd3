"""A site as the planner sees it: its spec, its pool's nodes and its profile, held against one another. Pure."""
