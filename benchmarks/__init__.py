"""Speed, memory and data throughput, measured; nothing here is imported by the product."""
