"""What a profile measures at a site, one module for each quantity: steps, bandwidth, energy, importance; and profiles that are kept."""
