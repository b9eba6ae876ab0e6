"""What `dgad bench` prints: the JSON document and the tables."""
