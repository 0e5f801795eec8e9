"""The cameras' entry point: frames of many cameras from Redis Streams, micro-batches, results to Kafka."""
