"""What ``make bench`` runs. Each part can be run alone and writes one JSON file; :mod:`bench.join` joins them."""
