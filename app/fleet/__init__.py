"""The camera door: frames of many cameras in by Redis Streams, micro-batches, results out by Kafka."""
